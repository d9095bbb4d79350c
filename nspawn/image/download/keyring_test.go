package download

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/shoenig/test/must"
)

var signed = []byte("this was signed\n")

// newKey makes a key that is an hour old and expires after lifetime; 0 means never.
func newKey(t *testing.T, lifetime time.Duration) *openpgp.Entity {
	t.Helper()
	key, err := openpgp.NewEntity("A Publisher", "", "images@example.com", &packet.Config{
		Algorithm:       packet.PubKeyAlgoEdDSA,
		Time:            ago(time.Hour),
		KeyLifetimeSecs: uint32(lifetime.Seconds()),
	})
	must.NoError(t, err)
	return key
}

// addSubkey adds a signing subkey, which expires after lifetime, to a key that is an hour
// old.
func addSubkey(t *testing.T, key *openpgp.Entity, lifetime time.Duration) {
	t.Helper()
	must.NoError(t, key.AddSigningSubkey(&packet.Config{
		Algorithm:       packet.PubKeyAlgoEdDSA,
		Time:            ago(59 * time.Minute),
		KeyLifetimeSecs: uint32(lifetime.Seconds()),
	}))
}

func ago(d time.Duration) func() time.Time {
	when := time.Now().Add(-d)
	return func() time.Time { return when }
}

// sign makes a signature that is dated half an hour ago.
func sign(t *testing.T, text []byte, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var signature bytes.Buffer
	must.NoError(t, openpgp.DetachSign(&signature, keys, bytes.NewReader(text), &packet.Config{Time: ago(30 * time.Minute)}))
	return signature.Bytes()
}

func armored(t *testing.T, kind string, content []byte) []byte {
	t.Helper()
	var text bytes.Buffer
	w, err := armor.Encode(&text, kind, nil)
	must.NoError(t, err)
	_, err = w.Write(content)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return text.Bytes()
}

// writeKeyring returns the path of a keyring with the public parts of keys.
func writeKeyring(t *testing.T, keys ...*openpgp.Entity) string {
	t.Helper()
	return tempFile(t, publicKeys(t, keys...))
}

func publicKeys(t *testing.T, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var ring bytes.Buffer
	for _, key := range keys {
		must.NoError(t, key.Serialize(&ring))
	}
	return ring.Bytes()
}

// check verifies a signature of the signed text.
func check(t *testing.T, keyring string, signature []byte) error {
	t.Helper()
	keys, err := openKeyring([]string{keyring})
	must.NoError(t, err)
	return keys.verify(signed, signature)
}

func TestVerify(t *testing.T) {
	key, other, withSubkey := newKey(t, 0), newKey(t, 0), newKey(t, 0)
	addSubkey(t, withSubkey, 0)
	ring := writeKeyring(t, newKey(t, 0), key, withSubkey)
	signature := sign(t, signed, key)
	must.NoError(t, check(t, ring, signature))
	must.NoError(t, check(t, ring, armored(t, openpgp.SignatureType, signature)))
	must.NoError(t, check(t, ring, append([]byte("\n"), armored(t, openpgp.SignatureType, signature)...)))
	must.NoError(t, check(t, ring, sign(t, signed, other, key)), must.Sprint("one of two keys is known"))
	must.NoError(t, check(t, ring, sign(t, signed, withSubkey)))
	must.NoError(t, check(t, writeKeyring(t, newKey(t, 24*time.Hour), newKey(t, time.Minute), key), signature))
}

func TestVerifyRefuses(t *testing.T) {
	key, other := newKey(t, 0), newKey(t, 0)
	expired := newKey(t, 45*time.Minute) // it expired between the signature and now
	expiredSubkey := newKey(t, 0)
	addSubkey(t, expiredSubkey, 45*time.Minute)
	revoked := newKey(t, 0)
	signature, ofRevoked := sign(t, signed, key), sign(t, signed, revoked)
	must.NoError(t, revoked.Revoke(packet.KeySuperseded, "", nil))
	ring := writeKeyring(t, key, expired, expiredSubkey, revoked)
	damaged := bytes.Clone(signature)
	damaged[len(damaged)-1] ^= 1

	for _, c := range []struct {
		name      string
		signature []byte
		want      string
	}{
		{"empty", nil, "read it: "},
		{"no signature", []byte("<html>"), "read it: "},
		{"armored something", armored(t, openpgp.PublicKeyType, publicKeys(t, key)), `it is a "PGP PUBLIC KEY BLOCK", not a detached signature`},
		{"armor without end", []byte("-----BEGIN PGP SIGNATURE-----\n"), "read it: "},
		{"key in place of signature", publicKeys(t, key), "unsupported signature type"},
		{"of another text", sign(t, []byte("something else"), key), "the signed list has been changed"},
		{"damaged", damaged, "the signed list has been changed"},
		{"truncated", signature[:len(signature)-1], "read it: "},
		{"of unknown key", sign(t, signed, other), "with key " + keyID(other) + ", which is not in keyring " + ring},
		{"of expired key", sign(t, signed, expired), keyID(expired) + " of keyring " + ring + ": openpgp: key expired"},
		{"of expired subkey", sign(t, signed, expiredSubkey), "the subkey has expired"},
		{"of revoked key", ofRevoked, "openpgp: signature made by revoked key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := check(t, ring, c.signature)
			must.ErrorContains(t, err, c.want)
			must.False(t, isTemporary(err))
		})
	}
}

func keyID(key *openpgp.Entity) string { return key.PrimaryKey.KeyIdString() }

func TestOpenKeyring(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	first, second := newKey(t, 0), newKey(t, 0)
	keys, err := openKeyring([]string{absent, writeKeyring(t, first), writeKeyring(t, second)})
	must.NoError(t, err)
	must.NoError(t, keys.verify(signed, sign(t, signed, first)))
	must.ErrorContains(t, keys.verify(signed, sign(t, signed, second)), "not in keyring")

	_, err = openKeyring([]string{absent, absent + "2"})
	must.ErrorContains(t, err, "none of "+absent+", "+absent+"2 exists")

	unreadable := t.TempDir() // a directory
	_, err = openKeyring([]string{unreadable, writeKeyring(t, first)})
	must.ErrorContains(t, err, "read keyring: read "+unreadable)

	for _, content := range [][]byte{nil, []byte("junk"), armored(t, openpgp.PublicKeyType, publicKeys(t, first))} {
		path := tempFile(t, content)
		_, err = openKeyring([]string{path, writeKeyring(t, first)})
		must.ErrorContains(t, err, "read keyring "+path)
		must.ErrorContains(t, err, "without --armor, and no keybox")
	}
}

// TestVerifyGPG verifies signatures that GnuPG has made, as most publishers use it.
func TestVerifyGPG(t *testing.T) {
	if _, err := exec.LookPath("gpg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("gpg is missing: install the package gpg")
		}
		t.Skip("SKIPPED: gpg is missing: install the package gpg")
	}
	home := t.TempDir()
	gpg := func(input io.Reader, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--passphrase", ""}, args...)...)
		var stderr strings.Builder
		cmd.Stdin, cmd.Stderr = input, &stderr
		out, err := cmd.Output()
		must.NoError(t, err, must.Sprint(stderr.String()))
		return out
	}
	t.Cleanup(func() { must.NoError(t, exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()) })

	gpg(nil, "--quick-generate-key", "images@example.com", "rsa3072", "sign", "1d")
	ring := tempFile(t, gpg(nil, "--export"))
	must.NoError(t, check(t, ring, gpg(bytes.NewReader(signed), "--detach-sign")))
	must.NoError(t, check(t, ring, gpg(bytes.NewReader(signed), "--detach-sign", "--armor")))
	must.NoError(t, check(t, ring, gpg(bytes.NewReader(signed), "--detach-sign", "--textmode")))
	weak := gpg(bytes.NewReader(signed), "--detach-sign", "--digest-algo", "SHA1")
	must.ErrorContains(t, check(t, ring, weak), "insecure message hash algorithm: SHA-1")
	inline := gpg(bytes.NewReader(signed), "--clear-sign")
	must.ErrorContains(t, check(t, ring, inline), "read it: ")

	keybox := filepath.Join(home, "pubring.kbx")
	_, err := os.Stat(keybox)
	must.NoError(t, err)
	_, err = openKeyring([]string{keybox})
	must.ErrorContains(t, err, "no keybox")
}
