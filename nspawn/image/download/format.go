package download

import (
	"fmt"
	"strings"
)

// Kind is the content type of an image file.
type Kind string

const (
	Tar   Kind = "tar"   // a tree of files
	Raw   Kind = "raw"   // a raw disk
	QCOW2 Kind = "qcow2" // a disk in QEMU's format
)

// Compression is the compression of an image file; empty means none.
type Compression string

const (
	Gzip  Compression = "gzip"
	Bzip2 Compression = "bzip2"
	Xz    Compression = "xz"
	Zstd  Compression = "zstd"
)

// Format returns kind and compression of an image file according to the end of its name:
// .tar, .raw or .qcow2, which may be followed by .gz, .bz2, .xz or .zst; .tgz means
// .tar.gz. name is the last element of a path or URL, without a query. Any other name is
// an error.
func Format(name string) (Kind, Compression, error) {
	base, compression := cutCompression(name)
	for _, kind := range []Kind{Tar, Raw, QCOW2} {
		if rest, ok := strings.CutSuffix(base, "."+string(kind)); ok && rest != "" {
			return kind, compression, nil
		}
	}
	return "", "", fmt.Errorf("image file %q ends in none of .tar, .raw and .qcow2, with or without .gz, .bz2, .xz or .zst", name)
}

// KindOf returns the kind of a file, given its name and the kind that the job names, if
// any. The two must not contradict each other. A name without a known ending can be of
// any kind that the job names.
func KindOf(name string, named Kind) (Kind, error) {
	kind, _, err := Format(name)
	switch {
	case err != nil && named != "":
		return named, nil
	case err == nil && named != "" && named != kind:
		return "", fmt.Errorf("image file %q is of type %s, not %s", name, kind, named)
	}
	return kind, err
}

func cutCompression(name string) (string, Compression) {
	for _, c := range []struct {
		suffix, plain string
		compression   Compression
	}{
		{".gz", "", Gzip},
		{".tgz", ".tar", Gzip},
		{".bz2", "", Bzip2},
		{".xz", "", Xz},
		{".zst", "", Zstd},
	} {
		if rest, ok := strings.CutSuffix(name, c.suffix); ok {
			return rest + c.plain, c.compression
		}
	}
	return name, ""
}
