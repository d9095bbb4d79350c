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

// systemKeyrings lists the keyrings of systemd-importd. A keyring in /etc replaces the
// one of the distribution. The .pgp files of newer versions come first (importctl(1) of
// systemd 262).
var systemKeyrings = []string{
	"/etc/systemd/import-pubring.pgp",
	"/etc/systemd/import-pubring.gpg",
	"/usr/lib/systemd/import-pubring.pgp",
	"/usr/lib/systemd/import-pubring.gpg",
}

// keyring holds the keys whose signatures are accepted.
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

// verify checks that text has a good signature, made with a key that was valid then and
// is valid now.
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
		return fmt.Errorf("it was made with key %016X of keyring %s: %w; get a newer keyring, or give sha256 in the job",
			details.SignedBy.PublicKey.KeyId, k.path, err)
	}
	return nil
}

// dearmor returns the packets of a signature, which may be armored (RFC 9580, 6.2) or
// not, whatever the name of its file is.
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

// explain returns what is wrong with a signature.
func (k keyring) explain(details *openpgp.MessageDetails) error {
	var issuers []string
	for _, candidate := range details.SignatureCandidates {
		issuers = append(issuers, fmt.Sprintf("%016X", candidate.IssuerKeyId))
	}
	by := strings.Join(issuers, ", ")
	if errors.Is(details.SignatureError, pgperrors.ErrUnknownIssuer) {
		return fmt.Errorf("it was made with key %s, which is not in keyring %s; if you trust it, add it there, or give sha256 in the job", by, k.path)
	}
	return fmt.Errorf("it was made with key %s, with keyring %s: %w; the signed list has been changed, or the key is not allowed to sign; do not use the image", by, k.path, details.SignatureError)
}

// checkNow refuses a key that has expired or has been revoked since the signature was
// made. The signer chooses the date of a signature, so a thief of an expired key could
// backdate one.
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
