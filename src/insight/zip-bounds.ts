/** What a zip may hold for it to be read as a bundle: a hostile one is refused before it is unpacked. */
import { ARTIFACTS_FOLDER, BundleError, BundleTooLargeError, MANIFEST_FILE, SECTIONS, TABLES } from './bundle.js'

/** Of the zip as a whole, where no file of it is to blame. */
export const ZIP = 'the zip'
/** The compression method of all files that are packed. */
export const DEFLATED = 8
/** A zip may have so many entries: artifacts, and a dozen files. */
export const MAX_ENTRIES = 100_000
/** Nothing that is said in an event packs like this; a megabyte may. */
const MAX_RATIO = 500
const FREE_BYTES = 16_777_216
const FILES = new Set<string>([...SECTIONS.filter(({ file }) => file !== ARTIFACTS_FOLDER).map(({ file }) => file), ...TABLES, MANIFEST_FILE])

/** Programs that pack a folder put such entries before what is in it. */
const FOLDERS = new Set(['events/', 'tables/', ARTIFACTS_FOLDER])
export const isFolder = (name: string): boolean => FOLDERS.has(name)

/** @throws BundleError for the name of a file that no bundle has */
export function assertFileName(name: string): void {
  if (name === 'error.json') throw new BundleError(name, 'the export failed on its way. Export the run again')
  if (!FILES.has(name) && !/^artifacts\/[0-9a-f]{64}$/.test(name))
    throw new BundleError(name.slice(0, 200).replace(/[^ -~]/g, '?'), 'no bundle has such a file')
}

/** @throws BundleTooLargeError for what packs too well to be anything but a zip bomb */
export function assertRatio(file: string, packedBytes: number, unpackedBytes: number): void {
  if (unpackedBytes <= FREE_BYTES || unpackedBytes <= MAX_RATIO * packedBytes) return
  throw new BundleTooLargeError(`${file} is ${packedBytes} bytes and would be ${unpackedBytes} when unpacked. The zip is damaged, or it is not a bundle`)
}
