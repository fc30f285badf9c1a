#!/bin/bash
# sanitized-venv.sh PYTHON DIRECTORY: a virtual environment whose Python starts under the runtime of AddressSanitizer, as
# extensions built with it need; what Python starts (qemu, fio, compilers) does not, because some of it hangs there.
set -euo pipefail
python=$1 directory=$2
[ -e "$directory/.made" ] && exit

"$python" -m venv --clear "$directory"
base=$(readlink -f "$directory/bin/python")
rm "$directory/bin/python"
cat >"$directory/bin/python" <<END
#!/bin/bash
# Its own name goes on as argv[0]: from that, Python finds its environment and what sys.executable is.
LD_PRELOAD=$("${CC:-cc}" -print-file-name=libasan.so) exec -a "\$0" "$base" "\$@"
END
chmod +x "$directory/bin/python"
packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo 'import os; os.environ.pop("LD_PRELOAD", None)' >"$packages/preload_is_for_python_alone.pth"
touch "$directory/.made"
