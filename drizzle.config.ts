/** For `npm run db:generate`: makes the next migration from the schema. Needs no database. */
import { defineConfig } from 'drizzle-kit'

export default defineConfig({ dialect: 'postgresql', schema: './src/db/schema.ts', out: './drizzle' })
