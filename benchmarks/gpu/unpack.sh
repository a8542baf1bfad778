# On the machine without a network, in the folder that holds part-0 … part-N and source.tgz: `unpack.sh TO [PYTHON]` makes of them
# TO/engine (vLLM), TO/venv (this project's packages, with `deliver`), TO/smollm2 and TO/source. PYTHON: the one that has PyTorch.
set -eu
to=$1 python=${2:-python3}
mkdir -p "$to/source"
tar -xzf source.tgz -C "$to/source"
cat part-? | tar -xf - -C "$to"
rm -rf part-?
for archive in "$to"/*.txz; do
    (xz -dc -T0 "$archive" | tar -xf - -C "$to" || touch "$to/failed"; rm "$archive") &
done
wait
[ ! -e "$to/failed" ]
"$python" -m venv --without-pip "$to/venv"
site=$(echo "$to"/venv/lib/python3*/site-packages)
mv "$to/project/bin/caddy" "$to/venv/bin/"
mv "$to"/project/* "$site/"
echo "$to/source" > "$site/model-delivery.pth"
printf '#!%s\nfrom model_delivery.cli.entry import main\nmain()\n' "$to/venv/bin/python" > "$to/venv/bin/deliver"
chmod +x "$to/venv/bin/deliver"
"$python" -m compileall -q -j 0 "$to/engine" "$site" > "$to/compileall.log" 2>&1 || true
"$to/venv/bin/deliver" list
