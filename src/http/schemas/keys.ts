/** API keys on the wire. */

import { type Static, Type } from '@sinclair/typebox'
import { WORKSPACE_NAME_PATTERN } from '../../access/workspaces.js'
import { NO_CONTROLS_PATTERN } from '../../domain/pattern.js'

const Role = Type.Union([Type.Literal('guest'), Type.Literal('member'), Type.Literal('admin')], {
  description: 'guest reads, member also posts and controls, admin also manages',
})
const WorkspaceName = Type.String({ pattern: WORKSPACE_NAME_PATTERN, description: 'lower case letters, digits and hyphens, at most 63', examples: ['default'] })

export const NewKey = Type.Object(
  {
    name: Type.String({ minLength: 1, maxLength: 100, pattern: NO_CONTROLS_PATTERN, description: 'who holds it, for the log', examples: ['ci'] }),
    role: Role,
    workspace: Type.Optional(WorkspaceName),
  },
  { $id: 'NewKey', additionalProperties: false },
)

const keyFields = {
  id: Type.String({ format: 'uuid' }),
  name: Type.String(),
  role: Role,
  workspaceId: Type.String({ format: 'uuid' }),
  workspace: WorkspaceName,
  createdAt: Type.String({ format: 'date-time' }),
}
export const Key = Type.Object(keyFields, { $id: 'Key', description: 'An API key, without the key itself' })
export type Key = Static<typeof Key>

export const CreatedKey = Type.Object(
  { ...keyFields, key: Type.String({ description: 'shown this once', examples: ['rp_em7Zn7Id1cX2LKyONoslDTnZ8RUWVFJcYvGPtKi-HnE'] }) },
  { $id: 'CreatedKey', description: 'A new API key, with the key itself' },
)
