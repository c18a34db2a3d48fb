"""The official JavaScript SDK against the test sandbox, and both ways with a mount."""
import getpass, os, pathlib, shutil

from conftest import Mount, run

HERE = pathlib.Path(__file__).parent / "sdk"


def test_the_official_sdk(double, scratch):
    work = pathlib.Path(os.environ.get("E2BFS_SDK_DIR", scratch / "sdk"))
    work.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json", "sdk_test.mjs"):
        shutil.copy(HERE / name, work / name)
    home = {"HOME": os.environ.get("HOME", str(scratch))}  # ~/.npmrc names the registry
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy") or "CERT" in name or "npm_" in name.lower()}
    def npm(*arguments):
        run("npm", *arguments, "--no-fund", "--no-audit", cwd=work, env={**home, **proxies}, timeout=300)

    node = "node"
    if not (work / "node_modules/e2b").is_dir():
        npm("ci", "--ignore-scripts")
    if tuple(map(int, run("node", "-p", "process.versions.node").stdout.split(".")))[:2] < (20, 18):  # Debian 12's is too old for the SDK
        npm("install", "--no-save", "node@22")
        node = work / "node_modules/node/bin/node"
    mount = Mount(double, "sdk")
    try:
        environment = {**double.environment(), "E2B_SANDBOX_URL": double.url, "SDK_USER": getpass.getuser()}
        done = run(node, "sdk_test.mjs", mount.inside, mount.path, cwd=work, env=environment, check=False)
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert done.stdout.count("ok: ") == 13
    finally:
        mount.close()
