// Type-aware lint, and the purity rules of raft/ and codec/ (docs/architecture.md, section 2).
import tseslint from 'typescript-eslint'

const impure = ['Date', 'setTimeout', 'setInterval', 'setImmediate', 'process', 'performance', 'fetch']

export default tseslint.config(
  { ignores: ['dist/**', 'build/**', 'native/**', 'prebuilds/**', 'scripts/**', 'eslint.config.js'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      eqeqeq: 'error',
      'no-empty': 'error',
    },
  },
  {
    files: ['lib/raft/**/*.ts'],
    rules: {
      'no-restricted-globals': ['error', ...impure, 'Buffer'],
      'no-restricted-properties': ['error', { object: 'Math', property: 'random' }],
      'no-restricted-imports': ['error', { patterns: [{ regex: '^node:(?!assert/strict$)' }] }],
    },
  },
  {
    files: ['lib/codec/**/*.ts'],
    rules: {
      'no-restricted-globals': ['error', ...impure],
      'no-restricted-properties': ['error', { object: 'Math', property: 'random' }],
      'no-restricted-imports': ['error', { patterns: [{ regex: '^node:(?!assert/strict$)' }] }],
    },
  },
)
