# The tpm2-tools that a newcomer tries, run against the TPM at $TPM2TOOLS_TCTI in
# the directory $1. t: must work; f: must fail.
set -u
cd "$1"
n=0; bad=0
t() { n=$((n+1)); "$@" > out.txt 2>&1 || { bad=$((bad+1)); echo "FAIL $*"; head -4 out.txt; }; }
f() { n=$((n+1)); if "$@" > out.txt 2>&1; then bad=$((bad+1)); echo "SHOULD FAIL $*"; fi; }
echo hello > msg
t tpm2_createprimary -C o -G ecc -c p.ctx
t tpm2_create -C p.ctx -G ecc -u k.pub -r k.priv
t tpm2_load -C p.ctx -u k.pub -r k.priv -c k.ctx
t tpm2_sign -c k.ctx -g sha256 -o k.sig msg
t tpm2_verifysignature -c k.ctx -g sha256 -s k.sig -m msg
t tpm2_evictcontrol -C o -c k.ctx 0x81000005
t tpm2_readpublic -c 0x81000005
t tpm2_evictcontrol -C o -c 0x81000005
f tpm2_readpublic -c 0x81000005
t tpm2_createek -G ecc -c ek.ctx -u ek.pub
t tpm2_createak -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx -u ak.pub -n ak.name
t tpm2_quote -c ak.ctx -l sha256:0,7 -q abcd -m q.msg -s q.sig -o q.pcr
t tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcr -q abcd
f tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcr -q abce
echo secret > secret
t tpm2_makecredential -e ek.pub -s secret -n $(od -An -v -tx1 ak.name | tr -d ' \n') -o cred -T none
t tpm2_startauthsession --policy-session -S s.ctx
t tpm2_policysecret -S s.ctx -c e
t tpm2_activatecredential -c ak.ctx -C ek.ctx -i cred -o plain -P "session:s.ctx"
t cmp plain secret
t tpm2_flushcontext s.ctx
t tpm2_startauthsession -S s.ctx
t tpm2_policypcr -S s.ctx -l sha256:16 -L pol
t tpm2_flushcontext s.ctx
t tpm2_create -C p.ctx -i secret -u se.pub -r se.priv -L pol
t tpm2_load -C p.ctx -u se.pub -r se.priv -c se.ctx
t tpm2_unseal -c se.ctx -p pcr:sha256:16 -o plain
t cmp plain secret
t tpm2_pcrextend 16:sha256=0000000000000000000000000000000000000000000000000000000000000001
f tpm2_unseal -c se.ctx -p pcr:sha256:16
t tpm2_pcrreset 16
t tpm2_unseal -c se.ctx -p pcr:sha256:16
t tpm2_nvdefine 0x1500016 -C o -s 32 -a "ownerread|ownerwrite|authread|authwrite" -p pw
t tpm2_nvwrite 0x1500016 -C o -i msg
t tpm2_nvread 0x1500016 -P pw -s 6 -o plain
t cmp plain msg
t tpm2_nvreadpublic 0x1500016
t tpm2_nvundefine 0x1500016 -C o
t tpm2_nvdefine 0x1500017 -C o -a "nt=counter|ownerread|ownerwrite"
t tpm2_nvincrement 0x1500017 -C o
t tpm2_nvread 0x1500017 -C o
t tpm2_nvread 0x1c0000a -C o -o ek.der
t openssl x509 -inform der -in ek.der -noout -text
t tpm2_hash -C o -g sha256 msg
t tpm2_createprimary -C o -G rsa2048 -c rp.ctx
t tpm2_create -C rp.ctx -G rsa2048 -u rk.pub -r rk.priv
t tpm2_load -C rp.ctx -u rk.pub -r rk.priv -c rk.ctx
t tpm2_rsaencrypt -c rk.ctx -o enc msg
t tpm2_rsadecrypt -c rk.ctx -o plain enc
t cmp plain msg
t tpm2_sign -c rk.ctx -g sha256 -s rsapss -o k.sig msg
t tpm2_verifysignature -c rk.ctx -g sha256 -s k.sig -m msg
t tpm2_create -C p.ctx -G aes128 -u a.pub -r a.priv
t tpm2_load -C p.ctx -u a.pub -r a.priv -c a.ctx
t tpm2_encryptdecrypt -c a.ctx -o enc msg
t tpm2_encryptdecrypt -d -c a.ctx -o plain enc
t cmp plain msg
t tpm2_create -C p.ctx -G hmac -u h.pub -r h.priv
t tpm2_load -C p.ctx -u h.pub -r h.priv -c h.ctx
t tpm2_hmac -c h.ctx msg
t tpm2_changeauth -c o ownerpw
f tpm2_createprimary -C o -G ecc -c x.ctx
t tpm2_changeauth -c o -p ownerpw
t tpm2_dictionarylockout --setup-parameters --max-tries=5 --recovery-time=10 --lockout-recovery-time=10
t tpm2_dictionarylockout --clear-lockout
t tpm2_certify -c k.ctx -C ak.ctx -g sha256 -o at -s sg
t tpm2_readclock
t tpm2_ecdhkeygen -c k.ctx -u pt -o z
t tpm2_getcap handles-persistent
t tpm2_getcap properties-variable
t tpm2_selftest -f
t tpm2_startauthsession --hmac-session -c p.ctx -S hs.ctx
t tpm2_sessionconfig --enable-decrypt --enable-encrypt hs.ctx
t tpm2_getrandom -S hs.ctx --hex 8
t tpm2_flushcontext hs.ctx
t tpm2_clear
echo "$n commands, $bad wrong"
[ "$bad" = 0 ]
