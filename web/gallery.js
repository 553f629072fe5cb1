// The server lists a pack's templates in the order of the file system, and the gallery keeps that order unless it is
// told to sort. Here those of released models come first, then those of Diversify, then those of single methods.
import { app } from "../../scripts/app.js"

const PACK = decodeURIComponent(import.meta.url.split("/extensions/")[1].split("/")[0])
const shelf = name => (name.endsWith(" - diverse images") ? 0 : name.startsWith("diversify_") ? 1 : 2)

const list = app.api.getWorkflowTemplates
app.api.getWorkflowTemplates = async function () {
    const found = await list.call(this)
    found[PACK]?.sort((a, b) => shelf(a) - shelf(b) || a.localeCompare(b))
    return found
}
