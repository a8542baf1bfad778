# Of a pod's init container, which never fails: can the folder $1, which the engine has as $2, keep what it compiles? Only then its caches are links to there.
made() { [ -d "$1" ] || mkdir -m 700 "$1" 2>/dev/null || [ -d "$1" ]; }
room() {
  probe=$(mktemp "$1/.probe.XXXXXX") || return 1
  dd if=/dev/zero of="$probe" bs=65536 count=16 2>/dev/null; full=$?
  rm -f "$probe"; return $full
}
tried() {
  mkdir -p "${1%/*}" && made "$1" || { echo unwritable; return; }
  [ -O "$1" ] || { echo foreign; return; }
  old=new; folder=$1; shift
  for name; do
    made "$folder/$name" && room "$folder/$name" || { echo unwritable; return; }
    [ -z "$(ls "$folder/$name")" ] || old=kept
  done
  echo $old
}
link() { [ ! -L "$2" ] || rm -f "$2"; case $is in new|kept) mkdir -p "${2%/*}" && ln -s "$1" "$2";; esac; }
is=$(tried "$1" vllm triton flashinfer)
link "$2/vllm" /tmp/cache/vllm
link "$2/triton" /tmp/.triton
link "$2/flashinfer" /tmp/.cache/flashinfer
echo "$is" | tee /dev/termination-log
exit 0
