package download

import (
	"context"
	"errors"
	"fmt"
)

// trust decides whether a list of checksums, whose name is given, is to be
// believed. The error matches errAbsent if what would tell is not there.
type trust func(ctx context.Context, name string, list []byte) error

// trustServer believes what the server says.
func trustServer(context.Context, string, []byte) error { return nil }

// listedSum returns the digest of the file according to the first list that is
// there, of those that systemd-importd looks for, in its order.
func (s *source) listedSum(ctx context.Context, believe trust) (string, error) {
	own, err1 := s.sumFrom(ctx, s.name+".sha256", believe)
	if !errors.Is(err1, errAbsent) {
		return own, err1
	}
	shared, err2 := s.sumFrom(ctx, "SHA256SUMS", believe)
	if !errors.Is(err2, errAbsent) {
		return shared, err2
	}
	return "", fmt.Errorf("nothing to verify the file by (%w; %w); give sha256 in the job, or set verify to less", err1, err2)
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

// trustSigned believes a list with a detached signature by a key of the keyring.
// systemd-importd, too, looks for both names, whatever is armored.
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
