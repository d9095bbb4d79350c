// Package download fetches the file of an image over HTTP or from a local path
// and verifies it by its SHA-256 before anybody may use it. What the sum must be
// comes from the job, or from a list beside the file, which may be signed: files
// are published as for systemd-importd (importctl(1), "pull-tar").
package download

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// Verify says what must vouch for a file that the job gives no checksum of. The
// values are those of importctl(1), --verify=; empty is VerifySignature, as
// there.
type Verify string

const (
	// VerifySignature takes the checksum from a list that is signed by a key of
	// the keyring.
	VerifySignature Verify = "signature"

	// VerifyChecksum takes the checksum from a list as the server gives it. With
	// https that is as trustworthy as the server; with http it shows damage only,
	// not an attack.
	VerifyChecksum Verify = "checksum"

	// VerifyNo takes the file as the server gives it.
	VerifyNo Verify = "no"
)

// Request is a file and how to verify it.
type Request struct {
	// URL is http://, https://, file:///PATH or /PATH. A user and password in it
	// are sent by Basic authentication (RFC 7617) to its host and what is below
	// that in DNS, not where else a redirect leads, and are in no error. Which
	// local paths are allowed is for the caller to say.
	URL string

	Verify Verify

	// SHA256 is what the file must have, 64 hexadecimal digits with or without
	// "sha256:" before them. It alone decides then, and Verify is not looked at
	// further. It may be empty.
	SHA256 string
}

// Client fetches files. Proxies are taken from the environment
// (net/http.ProxyFromEnvironment). Its zero value has no limits.
type Client struct {
	Total      time.Duration // for all that one call does; 0: no limit
	Inactivity time.Duration // for the server to send something; 0: no limit
	MaxBytes   int64         // how large a file may be; 0: no limit

	// Tee is given what Fetch writes, if it is not nil. Its error ends Fetch.
	Tee io.Writer

	// Progress is told how many bytes of a file have come, of total, which is -1
	// while it is not known. It is called within Fetch: with 0 at first, never
	// with less than before, and with done equal to total in the end if all has
	// come. It may be nil.
	Progress func(done, total int64)

	CAFile  string   // PEM certificates trusted besides the system's; may be empty
	Keyring []string // paths of OpenPGP keyrings; the first that exists is used; nil: those of systemd
}

// Resolve returns the digest, "sha256:" and 64 hexadecimal digits, that Fetch
// would demand of the file, without downloading that. With VerifyNo and no
// checksum from the job it is empty. Given to Fetch as Request.SHA256, it spares
// a second look at the list, and what is fetched is what was resolved.
//
// Errors are as of Fetch.
func (c Client) Resolve(ctx context.Context, r Request) (digest string, err error) {
	err = c.with(ctx, r, func(ctx context.Context, s *source) error {
		digest, err = c.expect(ctx, s, r)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("resolve checksum of %w", err)
	}
	return digest, nil
}

// Fetch downloads the file into to, which must be empty, and returns its digest,
// "sha256:" and 64 hexadecimal digits, after it was found to be as demanded. A
// connection that breaks on the way is made again, a few times, for the rest of
// the file, if the server can tell that it is still the same.
//
// If the error matches ErrTemporary, another call may succeed, with an empty file
// again. Once ctx is done, it is the cause of that instead. Upon an error what is
// in the file must not be used.
func (c Client) Fetch(ctx context.Context, r Request, to *os.File) (digest string, err error) {
	err = c.with(ctx, r, func(ctx context.Context, s *source) error {
		digest, err = c.fetch(ctx, s, r, to)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("download %w", err)
	}
	return digest, nil
}

// with does work on the source of a request, within the time for it. Errors
// begin with what the source is.
func (c Client) with(ctx context.Context, r Request, work func(context.Context, *source) error) error {
	s, err := newSource(c, r.URL)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer s.close()
	total := cmp.Or(c.Total, math.MaxInt64)
	ctx, cancel := context.WithTimeoutCause(ctx, total, fetch.Temporary(fmt.Errorf("not finished after %s", total)))
	defer cancel()
	if err := work(ctx, s); err != nil {
		return fmt.Errorf("%s: %w", s, err)
	}
	return nil
}

func (c Client) fetch(ctx context.Context, s *source, r Request, to *os.File) (string, error) {
	if err := checkEmpty(to); err != nil {
		return "", err
	}
	want, err := c.expect(ctx, s, r)
	if err != nil {
		return "", err
	}
	t := newTransfer(c, s, to)
	if err := t.run(ctx); err != nil {
		return "", err
	}
	got := t.digest()
	if want != "" && got != want {
		return "", fmt.Errorf("the file has checksum %s instead of %s: it was changed, or published again without its checksum;"+
			" if that is wanted, correct sha256 in the job", got, want)
	}
	return got, nil
}

// checkEmpty makes sure that nothing stays in a file that was not verified.
func checkEmpty(file *os.File) error {
	info, err := file.Stat()
	if err == nil && info.Size() != 0 {
		err = fmt.Errorf("%s, to download into, is not empty", file.Name())
	}
	return err
}

// expect returns the digest that the file must have, or an empty one if any
// will do.
func (c Client) expect(ctx context.Context, s *source, r Request) (string, error) {
	if r.SHA256 != "" {
		sum, ok := parseSum(strings.TrimPrefix(r.SHA256, algorithm))
		if !ok {
			return "", fmt.Errorf("sha256 %q is not 64 hexadecimal digits", r.SHA256)
		}
		return algorithm + sum, nil
	}
	switch cmp.Or(r.Verify, VerifySignature) {
	case VerifyNo:
		return "", nil
	case VerifyChecksum:
		return s.listedSum(ctx, trustServer)
	case VerifySignature:
		return s.listedSum(ctx, c.trustSigned(s))
	}
	return "", fmt.Errorf("verify %q is none of signature, checksum, no", r.Verify)
}
