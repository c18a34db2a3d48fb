// The official SDK against the test sandbox (debug mode: no control plane, no key), and both ways with a mount.
// Usage: node sdk_test.mjs DIRECTORY_IN_THE_SANDBOX DIRECTORY_OF_THE_MOUNT
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { Sandbox, NotFoundError, CommandExitError } from 'e2b'

const [inside, mounted] = process.argv.slice(2)
const user = process.env.SDK_USER
const sandbox = await Sandbox.connect('debug_sandbox_id', { debug: true })
const files = sandbox.files
const at = (name) => path.join(inside, name)

async function eventually(condition, what) {
  for (const end = Date.now() + 60_000; Date.now() < end;) {
    if (await condition()) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  assert.fail(`did not happen: ${what}`)
}

const steps = {
  async 'write and read text'() {
    const info = await files.write(at('text.txt'), 'hello ümlaut', { user })
    assert.equal(info.path, at('text.txt'))
    assert.equal(await files.read(at('text.txt'), { user }), 'hello ümlaut')
  },
  async 'read bytes'() {
    const bytes = new Uint8Array(300_000).map((_, i) => i * 7)
    await files.write(at('bytes.bin'), bytes.buffer, { user })
    assert.deepEqual(await files.read(at('bytes.bin'), { format: 'bytes', user }), bytes)
  },
  async 'read a stream'() {
    const parts = []
    for await (const part of await files.read(at('bytes.bin'), { format: 'stream', user })) parts.push(Buffer.from(part))
    assert.equal(Buffer.concat(parts).length, 300_000)
  },
  async 'several files at once'() {
    const written = await files.write([{ path: at('many/a'), data: 'A' }, { path: at('many/b'), data: 'B' }], { user })
    assert.equal(written.length, 2)
    assert.equal(await files.read(at('many/b'), { user }), 'B')
  },
  async 'list'() {
    const names = (await files.list(inside, { user })).map((entry) => [entry.name, entry.type]).sort()
    assert.deepEqual(names, [['bytes.bin', 'file'], ['many', 'dir'], ['text.txt', 'file']])
    const deep = await files.list(inside, { depth: 2, user })
    assert.equal(deep.length, 5)
  },
  async 'stat'() {
    const info = await files.getInfo(at('bytes.bin'), { user })
    assert.deepEqual([info.name, info.type, info.size, info.permissions], ['bytes.bin', 'file', 300_000, '-rw-r--r--'])
    assert.equal(await files.exists(at('bytes.bin'), { user }), true)
    assert.equal(await files.exists(at('missing'), { user }), false)
    await assert.rejects(files.read(at('missing'), { user }), NotFoundError)
  },
  async 'makeDir'() {
    assert.equal(await files.makeDir(at('new/deep'), { user }), true)
    assert.equal(await files.makeDir(at('new/deep'), { user }), false)
  },
  async 'rename'() {
    const info = await files.rename(at('text.txt'), at('new/renamed.txt'), { user })
    assert.equal(info.path, at('new/renamed.txt'))
    assert.equal(await files.exists(at('text.txt'), { user }), false)
  },
  async 'watchDir'() {
    const events = []
    const watch = await files.watchDir(at('new'), (event) => events.push(`${event.type} ${event.name}`), { user })
    await files.write(at('new/watched'), '1', { user })
    await eventually(() => events.some((event) => event === 'create watched'), 'the creation is reported')
    await files.remove(at('new/watched'), { user })
    await eventually(() => events.some((event) => event === 'remove watched'), 'the removal is reported')
    await watch.stop()
  },
  async 'remove'() {
    await files.remove(at('many'), { user })
    assert.equal(await files.exists(at('many'), { user }), false)
  },
  async 'commands.run'() {
    const done = await sandbox.commands.run('echo out; echo err >&2; pwd', { cwd: inside, user })
    assert.deepEqual([done.exitCode, done.stdout, done.stderr], [0, `out\n${inside}\n`, 'err\n'])
    await assert.rejects(sandbox.commands.run('exit 3', { user }), (error) => error instanceof CommandExitError && error.exitCode === 3)
    const command = await sandbox.commands.run('cat', { background: true, stdin: true, user })
    await sandbox.commands.sendStdin(command.pid, 'typed\n')
    await eventually(() => command.stdout === 'typed\n', 'cat answers')
    assert.ok((await sandbox.commands.list()).some((process) => process.pid === command.pid))
    assert.equal(await command.kill(), true)
  },
  async 'what the SDK writes the mount reads'() {
    await files.write(at('from-sdk.txt'), 'sdk', { user })
    await eventually(() => fs.existsSync(path.join(mounted, 'from-sdk.txt')), 'the file is seen')
    assert.equal(fs.readFileSync(path.join(mounted, 'from-sdk.txt'), 'utf8'), 'sdk')
    await files.write(at('from-sdk.txt'), 'changed', { user })
    await eventually(() => fs.readFileSync(path.join(mounted, 'from-sdk.txt'), 'utf8') === 'changed', 'the change is seen')
  },
  async 'what the mount writes the SDK reads'() {
    fs.writeFileSync(path.join(mounted, 'from-mount.txt'), 'mount')
    assert.equal(await files.read(at('from-mount.txt'), { user }), 'mount')
    fs.mkdirSync(path.join(mounted, 'made'))
    fs.renameSync(path.join(mounted, 'from-mount.txt'), path.join(mounted, 'made/moved.txt'))
    assert.deepEqual((await files.list(at('made'), { user })).map((entry) => entry.name), ['moved.txt'])
  },
}

for (const [name, step] of Object.entries(steps)) {
  try {
    await step()
    console.log(`ok: ${name}`)
  } catch (error) {
    console.log(`FAILED: ${name}`)
    console.log(error)
    process.exit(1)
  }
}
process.exit(0)
