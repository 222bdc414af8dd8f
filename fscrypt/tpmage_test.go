package fscrypt_test

import (
	"bytes"
	"io"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trusttree/trusttree/fscrypt"
)

func TestAgeFileForOneTPM(t *testing.T) {
	dev, other := newTPM(t), newTPM(t)
	boot(t, dev, "image 1")
	boot(t, other, "image 1")
	with := func(d *fscrypt.TPM) *fscrypt.TPM { d.Policies = []fscrypt.BootPolicy{imagePCRs("image 1")}; return d }
	mine := with(&fscrypt.TPM{Device: dev}).Age(t.Context())
	seal := func() []byte {
		var file bytes.Buffer
		w, err := age.Encrypt(&file, mine)
		require.NoError(t, err)
		_, err = io.WriteString(w, "for this node")
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return file.Bytes()
	}
	open := func(file []byte, id age.Identity) (string, error) {
		r, err := age.Decrypt(bytes.NewReader(file), id)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r)
		return string(b), err
	}
	file := seal()
	text, err := open(file, mine)
	require.NoError(t, err)
	assert.Equal(t, "for this node", text)
	_, err = open(seal(), mine)
	require.ErrorIs(t, err, fscrypt.ErrLatched)

	var none *age.NoIdentityMatchError
	_, err = open(file, with(&fscrypt.TPM{Device: other}).Age(t.Context()))
	require.ErrorAs(t, err, &none)
	reboot(t, dev, "another image")
	_, err = open(file, mine)
	require.ErrorIs(t, err, fscrypt.ErrPolicy)

	x, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	var foreign bytes.Buffer
	w, err := age.Encrypt(&foreign, x.Recipient())
	require.NoError(t, err)
	require.NoError(t, w.Close())
	_, err = open(foreign.Bytes(), mine)
	require.ErrorAs(t, err, &none)
}
