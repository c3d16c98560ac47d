import test from 'ava'
import { Lifecycle } from '../lib/lifecycle.js'

type Light = 'red' | 'green' | 'off'

test('a lifecycle makes the moves of its table and no other', (t) => {
  const light = new Lifecycle<Light>({ red: ['green', 'off'], green: ['red'], off: [] }, 'red')
  t.is(light.state, 'red')
  light.move('green')
  t.true(light.is('green'))
  t.throws(() => light.move('off'), { message: 'no move from green to off' })
  t.is(light.state, 'green')
  light.move('red')
  light.move('off')
  t.throws(() => light.move('off'))
  t.throws(() => light.move('red'))
})
