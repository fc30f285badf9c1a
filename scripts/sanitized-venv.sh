#!/bin/bash
# sanitized-venv.sh PYTHON DIRECTORY: a virtual environment whose Python starts under the runtime of AddressSanitizer, as
# extensions built with it need; what Python starts (qemu, fio, compilers) does not, because some of it hangs there. What else
# was to be preloaded (the tests' proof/shim.c) is, and goes on to what Python starts.
set -euo pipefail
python=$1 directory=$2
[ "$directory/.made" -nt "$0" ] && exit

"$python" -m venv --clear "$directory"
base=$(readlink -f "$directory/bin/python")
rm "$directory/bin/python"
cat >"$directory/bin/python" <<END
#!/bin/bash
# Its own name goes on as argv[0]: from that, Python finds its environment and what sys.executable is.
export PRELOAD_BESIDE_ASAN=\$LD_PRELOAD
LD_PRELOAD=$("${CC:-cc}" -print-file-name=libasan.so)\${LD_PRELOAD:+:\$LD_PRELOAD} exec -a "\$0" "$base" "\$@"
END
chmod +x "$directory/bin/python"
packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat >"$packages/preload_is_for_python_alone.pth" <<'END'
import os; os.environ["LD_PRELOAD"] = os.environ.get("PRELOAD_BESIDE_ASAN", "")
END
touch "$directory/.made"
