package download

import (
	"bytes"
	"os"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/shoenig/test/must"
)

// FuzzVerify reads whatever a server may send as a signature. Only bytes that were made with
// the key, or that stand for the same signature, are good.
func FuzzVerify(f *testing.F) {
	key, err := openpgp.NewEntity("A Publisher", "", "images@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	must.NoError(f, err)
	var ring, signature, text bytes.Buffer
	must.NoError(f, key.Serialize(&ring))
	must.NoError(f, openpgp.DetachSign(&signature, []*openpgp.Entity{key}, bytes.NewReader([]byte("another text")), nil))
	path := f.TempDir() + "/ring"
	must.NoError(f, os.WriteFile(path, ring.Bytes(), 0o600))
	keys, err := openKeyring([]string{path})
	must.NoError(f, err)
	w, err := armor.Encode(&text, openpgp.SignatureType, map[string]string{"Comment": "x"})
	must.NoError(f, err)
	_, err = w.Write(signature.Bytes())
	must.NoError(f, err)
	must.NoError(f, w.Close())
	f.Add(signature.Bytes())
	f.Add(text.Bytes())
	f.Add(append(signature.Bytes(), signature.Bytes()...))
	f.Add([]byte("-----BEGIN PGP SIGNATURE-----\n"))
	f.Add(ring.Bytes())
	f.Fuzz(func(t *testing.T, signature []byte) {
		if keys.verify([]byte("this text"), signature) == nil {
			t.Errorf("%q is taken for a signature of a text that was never signed", signature)
		}
	})
}
