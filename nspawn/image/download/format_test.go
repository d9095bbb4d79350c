package download

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		name        string
		kind        Kind
		compression Compression
	}{
		{"a.tar", Tar, ""},
		{"a.tar.gz", Tar, Gzip},
		{"a.tgz", Tar, Gzip},
		{"a.tar.bz2", Tar, Bzip2},
		{"a.tar.xz", Tar, Xz},
		{"a.tar.zst", Tar, Zstd},
		{"a.raw", Raw, ""},
		{"a.raw.gz", Raw, Gzip},
		{"a.raw.bz2", Raw, Bzip2},
		{"a.raw.xz", Raw, Xz},
		{"a.raw.zst", Raw, Zstd},
		{"a.qcow2", QCOW2, ""},
		{"a.qcow2.xz", QCOW2, Xz},
		{"a.tar.raw", Raw, ""}, // the last ending counts
		{"debian-13.1_amd64.root.tar.xz", Tar, Xz},
	} {
		kind, compression, err := Format(c.name)
		must.NoError(t, err, must.Sprint(c.name))
		must.EqOp(t, c.kind, kind, must.Sprint(c.name))
		must.EqOp(t, c.compression, compression, must.Sprint(c.name))
	}
}

func TestFormatUnknown(t *testing.T) {
	for _, name := range []string{
		"", "a", ".tar", ".tar.xz", "tar", ".tgz", "a.gz", "a.tar.gz.xz", "a.tar.lz4", "a.img", "a.TAR", "a.tar ", "a.tarx", "a.qcow",
	} {
		_, _, err := Format(name)
		must.ErrorContains(t, err, "ends in none of .tar, .raw and .qcow2", must.Sprint(name))
	}
}
