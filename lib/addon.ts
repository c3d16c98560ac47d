/**
 * Loads the native addon: a prebuilt binary, or the one compiled here. The only place that does; `engine/` and
 * `storage/` give its exports their types (addon-engine.ts, addon-storage.ts).
 */
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)
// dist/lib/addon.js → the package's root, where node-gyp-build looks for prebuilds/ and build/Release/.
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..')

export const addon: unknown = (require('node-gyp-build') as (dir: string) => unknown)(root)
