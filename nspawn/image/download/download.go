// Package download fetches the file of an image over HTTP or from a local path, and
// verifies its SHA-256 before the file may be used. The expected checksum comes from the
// job, or from a list beside the file, which may be signed. Files are published in the
// same way as for systemd-importd (importctl(1), "pull-tar").
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

// Verify selects how a file is verified if the job gives no checksum. The values, and the
// default VerifySignature, are those of importctl(1), --verify=.
type Verify string

const (
	// VerifySignature takes the checksum from a list that is signed with a key of the
	// keyring.
	VerifySignature Verify = "signature"

	// VerifyChecksum takes the checksum from an unsigned list on the server. With https,
	// it is as trustworthy as the server. With http, it detects only damage, not attacks.
	VerifyChecksum Verify = "checksum"

	// VerifyNo accepts any file.
	VerifyNo Verify = "no"
)

// Request describes a file and how to verify it.
type Request struct {
	// URL is http://…, https://…, file:///PATH or /PATH. A user and password in it are
	// sent by Basic authentication (RFC 7617) to its host and subdomains of it, but to no
	// other host to which a redirect leads. No error contains them. The caller checks
	// which local paths are allowed.
	URL string

	Verify Verify

	// SHA256 is the file's checksum, 64 hexadecimal digits with or without "sha256:"
	// before them. If it is set, Verify is ignored. It may be empty.
	SHA256 string
}

// Client fetches files. It uses the proxies of the environment
// (net/http.ProxyFromEnvironment). The zero value has no limits.
type Client struct {
	Total      time.Duration // time limit of one call; 0: no limit
	Inactivity time.Duration // how long the server may send nothing; 0: no limit
	MaxBytes   int64         // maximum size of a file; 0: no limit

	// Tee, if not nil, also receives what Fetch writes. If it returns an error, Fetch
	// fails.
	Tee io.Writer

	// Progress is called by Fetch with the number of bytes that have arrived and the
	// total, which is -1 while it is unknown. The first call has done 0, done never
	// decreases, and after a complete download the last call has done equal to total.
	// Progress may be nil.
	Progress func(done, total int64)

	CAFile  string   // PEM certificates to trust in addition to the system's; may be empty
	Keyring []string // paths of OpenPGP keyrings, of which the first existing one is used; nil: systemd's paths
}

// Resolve returns the digest, "sha256:" and 64 hexadecimal digits, that Fetch would
// require of the file, without downloading the file. The digest is empty with VerifyNo
// and no checksum in the job. Passing it to Fetch as Request.SHA256 avoids reading the
// list twice, and ensures that the fetched file is the resolved one.
//
// Resolve returns the same errors as Fetch.
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

// Fetch downloads the file into to, which must be empty. It returns the file's digest,
// "sha256:" and 64 hexadecimal digits, after verifying it. If the connection breaks,
// Fetch requests the rest of the file, a limited number of times, provided that the
// server can tell whether the file is still the same.
//
// If the error matches ErrTemporary, another call, with an empty file, may succeed. If
// ctx is done, its cause is returned. After an error, the content of the file must not be
// used.
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

// with calls work with the source of a request, within the time limit. Errors begin with
// the name of the source.
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

// checkEmpty ensures that the file contains nothing that is not verified.
func checkEmpty(file *os.File) error {
	info, err := file.Stat()
	if err == nil && info.Size() != 0 {
		err = fmt.Errorf("%s, to download into, is not empty", file.Name())
	}
	return err
}

// expect returns the digest that the file must have, or an empty one if any file is
// accepted.
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
