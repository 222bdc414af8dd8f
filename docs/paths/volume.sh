#!/bin/sh
# A volume sealed to a TPM: it opens on this TPM, once in each boot, on no other
# TPM, and with the recovery key. Needs Go alone; the TPM is a software TPM that
# protects nothing.
. "$(dirname -- "$0")/common.sh"
volume() { "$BIN/volume" "$@"; }

say "a recovery key, for the safe, and a TPM"
"$BIN/age-keygen" -pq -o recovery.key 2>/dev/null
recipient=$(sed -n 's/^# public key: //p' recovery.key)
tpm chip
at="-dir vol -tpm unix:$DIR/tpm.sock -pcrs 7"

say "a volume"
volume create $at -label data -counter 0x01800112 -recipient "$recipient"
echo 'a reading' >reading

say "the next boot: a file goes in; after that the TPM refuses until the next boot"
tpm chip
volume put $at -name lamp/reading -file reading
want 3 volume get $at -name lamp/reading

say "the next boot: the file comes out, and the disk holds no clear text"
tpm chip
volume get $at -name lamp/reading
want 1 grep -rq 'a reading' vol

say "the disk in another node"
tpm other
want 3 volume get $at -name lamp/reading

say "the recovery key, on any machine"
volume recover -dir vol -identity recovery.key -to recovered
cmp reading recovered/lamp/reading
