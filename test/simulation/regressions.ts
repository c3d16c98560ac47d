/**
 * Seeds that once failed, and what they had found. They are always run. A seed finds its bug only as long as nothing else
 * in the simulation changes, so each finding is pinned a second time, by the scenario or test named beside it.
 */
import type { Profile } from './swarm.js'

export const regressions: readonly {
  readonly seed: number
  readonly profile?: Profile
  readonly found: string
  readonly pinnedBy: string
}[] = [
  {
    seed: 16,
    found: 'a failed write stood for the later one of the same entry: the follower never caught up',
    pinnedBy: 'follower-disk-failure.txt',
  },
  {
    seed: 283,
    found: 'a read waited for ever for a server that had been removed',
    pinnedBy: 'read-survives-removal.txt',
  },
  {
    seed: 655,
    found: 'a leader that alone had its own removal did not campaign, and nobody else could win',
    pinnedBy: 'removed-leader-is-needed.txt',
  },
  {
    seed: 759,
    found: 'a server with a promotion it did not know to be committed below its own demotion did not campaign',
    pinnedBy: 'demoted-leader-is-needed.txt',
  },
  {
    seed: 1775,
    found: 'answers to heartbeats and duplicates began parallel conversations: a storm',
    pinnedBy: 'one-conversation-per-follower.txt',
  },
  {
    seed: 1879,
    found: 'the refusal of a message with prev 0 read as a success',
    pinnedBy: 'refusal-is-no-success.txt',
  },
  {
    seed: 2220,
    found: 'a member like C that had been away was doubted for as long as it had been away',
    pinnedBy: 'long-absent-member-like-c.txt',
  },
  {
    seed: 6380,
    found: 'the success of a snapshot made a member like C believed, stale tail included',
    pinnedBy: 'leader.test.ts',
  },
  {
    seed: 347,
    profile: 'half-written disks',
    found: 'the only voter, having voted for another, led in the same term when it started: two leaders',
    pinnedBy: 'lone-voter-has-voted.txt',
  },
]
