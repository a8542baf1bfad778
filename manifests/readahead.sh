# Of a hook of the engine's container: read the weights in the folder $1, as many as fit into 0.7 of what is free on the node, or of $2 KiB.
(
  cd "$1" || exit
  room=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  [ "${room:-0}" -lt "$2" ] || room=$2
  room=$((${room:-0} * 7 / 10))
  for file in *.safetensors *.gguf *.bin; do
    [ -f "$file" ] || continue
    room=$((room - $(stat -Lc %s "$file") / 1024))
    [ $room -ge 0 ] || break
    cat "$file"
  done
) </dev/null >/dev/null 2>&1 &
exit 0
