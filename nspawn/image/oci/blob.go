package oci

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// maxDocument limits the size of JSON documents, in bytes. Registries accept no larger
// ones (OCI distribution spec 1.1, "Pushing manifests").
const maxDocument = 4 << 20

// content gives access to the manifests and blobs of an image.
type content interface {
	// manifest returns the manifest or index with the descriptor's digest.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)

	// blob opens a blob. Reading it ends in an error if it does not have the descriptor's
	// size and digest.
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// document reads a blob that is a JSON document.
func document(ctx context.Context, from content, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("document %s of %d bytes: %w", d.Digest, d.Size, errTooLarge)
	}
	blob, err := from.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

var errTooLarge = fmt.Errorf("larger than %d bytes", maxDocument)

// readDocument reads a JSON document of unknown size.
func readDocument(r io.ReadCloser) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(nil, r, maxDocument))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, errTooLarge
	}
	return raw, err
}

// verifyingReader reads a blob and compares it with its descriptor.
type verifyingReader struct {
	io.ReadCloser
	ctx  context.Context
	want v1.Descriptor
	size int64
	hash hash.Hash // nil if ReadCloser compares the digest
}

// sized returns a reader that compares the size. The blob itself compares the digest.
func sized(ctx context.Context, blob io.ReadCloser, want v1.Descriptor) io.ReadCloser {
	return &verifyingReader{ReadCloser: blob, ctx: ctx, want: want}
}

// verified returns a reader that compares size and digest.
func verified(ctx context.Context, blob io.ReadCloser, want v1.Descriptor) (io.ReadCloser, error) {
	hash, err := v1.Hasher(want.Digest.Algorithm)
	if err != nil {
		return nil, err
	}
	return &verifyingReader{ReadCloser: blob, ctx: ctx, want: want, hash: hash}, nil
}

func (e *verifyingReader) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := e.ReadCloser.Read(p)
	e.size += int64(n)
	if e.size > e.want.Size {
		return 0, fmt.Errorf("longer than the %d bytes in its manifest", e.want.Size)
	}
	if e.hash != nil {
		e.hash.Write(p[:n])
	}
	switch {
	case err == nil, isTemporary(err), e.ctx.Err() != nil:
		return n, err
	case e.size < e.want.Size && (err == io.EOF || e.hash == nil): // the library would report a wrong digest
		return n, fetch.Temporary(fmt.Errorf("truncated: got %d of %d bytes: %w", e.size, e.want.Size, io.ErrUnexpectedEOF))
	case err == io.EOF && e.hash != nil:
		return n, e.compare()
	}
	return n, err
}

// compare returns io.EOF if the digest is right.
func (e *verifyingReader) compare() error {
	if got := hex.EncodeToString(e.hash.Sum(nil)); got != e.want.Digest.Hex {
		return fmt.Errorf("digest is %s:%s, not %s", e.want.Digest.Algorithm, got, e.want.Digest)
	}
	return io.EOF
}
