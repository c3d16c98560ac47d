/**
 * Seeds that once failed, and what they had found. They are always run. A seed finds its bug only as long as nothing else in
 * the simulation changes, so each finding also has a scenario or a unit test; see the note beside it.
 */
export const regressions: readonly { readonly seed: number; readonly found: string }[] = []
