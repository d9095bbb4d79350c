package download

import (
	"context"
	"errors"
	"fmt"
)

// trust decides whether to trust the list of checksums with the given name. The error
// matches errAbsent if the signature is missing.
type trust func(ctx context.Context, name string, list []byte) error

// trustServer trusts every list of the server.
func trustServer(context.Context, string, []byte) error { return nil }

// listedSum returns the file's digest from the first list that exists. It tries the same
// lists as systemd-importd, in the same order.
func (s *source) listedSum(ctx context.Context, believe trust) (string, error) {
	own, err1 := s.sumFrom(ctx, s.name+".sha256", believe)
	if !errors.Is(err1, errAbsent) {
		return own, err1
	}
	shared, err2 := s.sumFrom(ctx, "SHA256SUMS", believe)
	if !errors.Is(err2, errAbsent) {
		return shared, err2
	}
	return "", fmt.Errorf("there is nothing to verify the file with (%w; %w); give sha256 in the job, or set verify to less", err1, err2)
}

func (s *source) sumFrom(ctx context.Context, name string, believe trust) (string, error) {
	list, err := s.readBeside(ctx, name)
	if err != nil {
		return "", err
	}
	if err := believe(ctx, name, list); err != nil {
		return "", err
	}
	sum, err := findSum(list, s.name)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return algorithm + sum, nil
}

// trustSigned trusts a list with a detached signature by a key of the keyring. Like
// systemd-importd, it tries both file names, whether the signature is armored or not.
func (c Client) trustSigned(s *source) trust {
	return func(ctx context.Context, name string, list []byte) error {
		signature, err := s.readBeside(ctx, name+".asc")
		if errors.Is(err, errAbsent) {
			signature, err = s.readBeside(ctx, name+".gpg")
		}
		if errors.Is(err, errAbsent) {
			return fmt.Errorf("%s has no signature, neither %[1]s.asc nor %[1]s.gpg: %w", name, err)
		}
		if err != nil {
			return err
		}
		keys, err := openKeyring(c.Keyring)
		if err != nil {
			return err
		}
		if err := keys.verify(list, signature); err != nil {
			return fmt.Errorf("verify signature of %s: %w", name, err)
		}
		return nil
	}
}
