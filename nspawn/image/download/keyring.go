package download

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// systemKeyrings are those that systemd-importd looks for, of which one in /etc
// stands in for that of the distribution. The .pgp of newer versions comes first
// (importctl(1) of systemd 262).
var systemKeyrings = []string{
	"/etc/systemd/import-pubring.pgp",
	"/etc/systemd/import-pubring.gpg",
	"/usr/lib/systemd/import-pubring.pgp",
	"/usr/lib/systemd/import-pubring.gpg",
}

// keyring has the keys that may sign.
type keyring struct {
	path string
	keys openpgp.EntityList
}

// openKeyring reads the first keyring that exists.
func openKeyring(paths []string) (keyring, error) {
	if paths == nil {
		paths = systemKeyrings
	}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return keyring{}, fmt.Errorf("read keyring: %w", err)
		}
		keys, err := openpgp.ReadKeyRing(bytes.NewReader(content))
		if err == nil && len(keys) == 0 {
			err = errors.New("no key in it")
		}
		if err != nil {
			return keyring{}, fmt.Errorf("read keyring %s: %w; it must be as gpg --export writes it, without --armor, and no keybox", path, err)
		}
		return keyring{path, keys}, nil
	}
	return keyring{}, fmt.Errorf("no keyring: none of %s exists; make one by gpg --export, or give sha256 in the job", strings.Join(paths, ", "))
}

// verify checks that one of the signatures of text is good, and made by a key
// that is valid, then and now.
func (k keyring) verify(text, signature []byte) error {
	packets, err := dearmor(signature)
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	details, err := openpgp.VerifyDetachedSignatureReader(k.keys, bytes.NewReader(text), packets, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, details.UnverifiedBody)
	}
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	if details.SignatureError != nil || !details.IsVerified {
		return k.explain(details)
	}
	if err := checkNow(details.SignedBy); err != nil {
		return fmt.Errorf("it is by key %016X of keyring %s: %w; get a newer keyring, or give sha256 in the job",
			details.SignedBy.PublicKey.KeyId, k.path, err)
	}
	return nil
}

// dearmor returns the packets of a signature, which may be armored (RFC 9580,
// 6.2) or not, whatever its file is called.
func dearmor(signature []byte) (io.Reader, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(signature), []byte("-----BEGIN ")) {
		return bytes.NewReader(signature), nil
	}
	block, err := armor.Decode(bytes.NewReader(signature))
	if err != nil {
		return nil, err
	}
	if block.Type != openpgp.SignatureType {
		return nil, fmt.Errorf("it is a %q, not a detached signature", block.Type)
	}
	return block.Body, nil
}

// explain tells what is wrong with a signature.
func (k keyring) explain(details *openpgp.MessageDetails) error {
	var issuers []string
	for _, candidate := range details.SignatureCandidates {
		issuers = append(issuers, fmt.Sprintf("%016X", candidate.IssuerKeyId))
	}
	by := strings.Join(issuers, ", ")
	if errors.Is(details.SignatureError, pgperrors.ErrUnknownIssuer) {
		return fmt.Errorf("it is by key %s, which is not in keyring %s; if you trust it, add it there, or give sha256 in the job", by, k.path)
	}
	return fmt.Errorf("it is by key %s, with keyring %s: %w; what it signs was changed, or the key must not sign; do not use the image", by, k.path, details.SignatureError)
}

// checkNow refuses a key that has expired or was revoked since it signed. The
// date of a signature is the word of who made it: with a stolen key one can
// always be made that was good then.
func checkNow(key *openpgp.Key) error {
	now := time.Now()
	if _, err := key.Entity.VerifyPrimaryKey(now, nil); err != nil {
		return err
	}
	if _, ok := key.Entity.SigningKeyById(now, key.PublicKey.KeyId, nil); !ok {
		return errors.New("the subkey has expired or was revoked")
	}
	return nil
}
