/** What workers are called. */

import { Type } from '@sinclair/typebox'
import { pattern } from '../../domain/pattern.js'

const PRINTABLE_ASCII = pattern('^[!-~]([ -~]*[!-~])?$', 'printable ASCII without a space at either end')

/** In a body and in `X-Worker-Id` alike: what one of them could not say, the same worker would be refused for. */
export const workerId = (description: string) => Type.String({ minLength: 1, maxLength: 256, pattern: PRINTABLE_ASCII, description })

/** Who tells this of a run. */
export const WorkerHeader = Type.Optional(workerId('the worker that claimed the run: refused with 409 once its lease is lost'))
