package qcow2

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// unit is the size of the units that newRaw writes or leaves out.
const unit = 64 << 10

// newRaw makes a disk of 2.5 MiB and three sectors. It returns its path, its content, and
// the runs of offsets that have data.
func newRaw(t *testing.T) (path string, content []byte, data [][2]int64) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	content = make([]byte, 40*unit+3*512)
	path = filepath.Join(t.TempDir(), "raw")
	file, err := os.Create(path)
	must.NoError(t, err)
	defer file.Close()
	must.NoError(t, file.Truncate(int64(len(content))))
	for start := 0; start < len(content); start += unit {
		p := content[start:min(start+unit, len(content))]
		switch kind := random.Uint64() % 5; {
		case start+unit > len(content) || kind == 0:
			_, _ = random.Read(p)
		case kind == 1:
			copy(p, bytes.Repeat([]byte("what can be compressed "), unit/20))
		case kind == 2: // zeros that are written
		default:
			continue
		}
		_, err := file.WriteAt(p, int64(start))
		must.NoError(t, err)
		if allZero(p) {
			continue
		}
		if n := len(data); n > 0 && data[n-1][1] == int64(start) {
			data[n-1][1] += int64(len(p))
		} else {
			data = append(data, [2]int64{int64(start), int64(start + len(p))})
		}
	}
	return path, content, data
}

// dataOf lists the parts of a file that are not holes.
func dataOf(t *testing.T, file *os.File) [][2]int64 {
	t.Helper()
	var all [][2]int64
	for end := int64(0); ; {
		start, err := file.Seek(end, unix.SEEK_DATA)
		if err != nil {
			must.ErrorIs(t, err, unix.ENXIO)
			return all
		}
		end, err = file.Seek(start, unix.SEEK_HOLE)
		must.NoError(t, err)
		all = append(all, [2]int64{start, end})
	}
}

// qemu runs qemu-img or qemu-io. A single argument is split at spaces.
func qemu(t *testing.T, program string, args ...string) {
	t.Helper()
	if len(args) == 1 {
		args = strings.Fields(args[0])
	}
	out, err := exec.Command(hosttest.Program(t, program, "qemu-utils"), args...).CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s %q: %s", program, args, out))
}

// convertFile converts the file at path.
func convertFile(t *testing.T, path string, maxBytes int64) (to *os.File, err error) {
	t.Helper()
	in, err := os.Open(path)
	must.NoError(t, err)
	defer in.Close()
	to, err = os.Create(filepath.Join(t.TempDir(), "to"))
	must.NoError(t, err)
	t.Cleanup(func() { _ = to.Close() })
	return to, Convert(t.Context(), in, to, maxBytes)
}

// requireContent checks the content of a file.
func requireContent(t *testing.T, content []byte, path string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must.NoError(t, err)
	must.EqOp(t, len(content), len(got))
	for i := 0; i < len(content); i += 512 {
		end := min(i+512, len(content))
		must.True(t, bytes.Equal(content[i:end], got[i:end]), must.Sprintf("sector at %#x", i))
	}
}

// TestConvert lets qemu-img convert a disk in all ways that it supports, and expects the
// same disk back.
func TestConvert(t *testing.T) {
	raw, content, data := newRaw(t)
	for _, args := range []string{
		"-o compat=0.10",
		"-o compat=0.10 -c",
		"-o compat=0.10,cluster_size=512 -c",
		"-o compat=1.1",
		"-o compat=1.1 -c",
		"-o compat=1.1 -S 0",
		"-o preallocation=metadata",
		"-o refcount_bits=1,lazy_refcounts=on",
		"-o cluster_size=512",
		"-o cluster_size=4k",
		"-o cluster_size=4k -c",
		"-o cluster_size=2M",
		"-o cluster_size=2M -c",
		"-o compression_type=zstd -c",
		"-o compression_type=zstd,cluster_size=512 -c",
		"-o compression_type=zstd,cluster_size=2M -c",
	} {
		t.Run(args, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "qcow2")
			qemu(t, "qemu-img", "convert -f raw -O qcow2 "+args+" "+raw+" "+path)
			to, err := convertFile(t, path, int64(len(content)))
			must.NoError(t, err)
			requireContent(t, content, to.Name())
			must.Eq(t, data, dataOf(t, to))
			_, err = convertFile(t, path, int64(len(content))-1)
			must.ErrorContains(t, err, "its disk has 2622976 bytes, but at most 2622975 are allowed")
		})
	}
}

// TestConvertUsed compares with qemu-img for disks that were in use.
func TestConvertUsed(t *testing.T) {
	for _, c := range []struct{ options, use string }{
		{"compat=1.1", "write -P 1 70k 3k; write -P 2 9M 512"},
		{"cluster_size=512", "write -P 1 70k 3k; write -P 2 9M 512"},
		{"compat=1.1", "write -P 1 0 1M; write -z 128k 300k; discard 640k 64k; write -z -u 768k 64k"},
		{"compat=0.10", "write -P 1 0 1M; write -z 128k 300k; discard 640k 64k"},
		{"compat=1.1", "write -c -P 1 0 64k; write -c -P 2 1M 64k; write -P 3 4k 4k"},
		{"compat=0.10", "write -P 1 0 1M; truncate 3G; write -P 2 2G 1M"},
		{"cluster_size=4k", "write -P 1 9M 1M; write -P 2 0 1M; truncate 9765376"},
	} {
		t.Run(c.options+" "+c.use, func(t *testing.T) {
			path := create(t, c.options)
			use(t, path, c.use)
			requireAsQEMU(t, path)
		})
	}
}

// TestConvertSnapshot converts the current state.
func TestConvertSnapshot(t *testing.T) {
	path := create(t, "compat=1.1")
	use(t, path, "write -P 1 0 1M")
	qemu(t, "qemu-img", "snapshot -c before "+path)
	use(t, path, "write -P 2 64k 200k; write -P 3 5M 1M")
	requireAsQEMU(t, path)
}

// create makes an empty disk of 10 MiB.
func create(t *testing.T, options string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "qcow2")
	qemu(t, "qemu-img", "create -q -f qcow2 -o "+options+" "+path+" 10M")
	return path
}

// use runs commands of qemu-io.
func use(t *testing.T, path, commands string) {
	t.Helper()
	args := []string{"-t", "unsafe", "-f", "qcow2", path}
	for command := range strings.SplitSeq(commands, "; ") {
		args = append(args, "-c", command)
	}
	qemu(t, "qemu-io", args...)
}

// requireAsQEMU also converts a file with qemu-img, and compares the results.
func requireAsQEMU(t *testing.T, path string) {
	t.Helper()
	want := path + ".raw"
	qemu(t, "qemu-img", "convert -O raw "+path+" "+want)
	to, err := convertFile(t, path, 4<<30)
	must.NoError(t, err)
	qemu(t, "qemu-img", "compare -f raw -F raw "+want+" "+to.Name())
	must.EqOp(t, size(t, want), size(t, to.Name()))
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	stat, err := os.Stat(path)
	must.NoError(t, err)
	return stat.Size()
}

// TestRefused lets qemu-img make files that must not or cannot be read.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "qcow2")
	create := "create -q -f qcow2 "
	qemu(t, "qemu-img", create+dir+"/base.qcow2 1M")
	for _, c := range []struct{ args, want string }{
		{create + "-b /etc/shadow -F raw " + path + " 1M", "it has a backing file"},
		{create + "-o compat=0.10 -b base.qcow2 -F qcow2 " + path, "it has a backing file"},
		{create + "-o data_file=" + dir + "/data " + path + " 1M", "it has an external data file"},
		{create + "-o data_file=" + dir + "/data,data_file_raw=on " + path + " 1M", "it has an external data file"},
		{create + "-o extended_l2=on " + path + " 1M", "it has extended L2 entries"},
		{create + "--object secret,id=s,data=geheim -o encrypt.format=aes,encrypt.key-secret=s " + path + " 1M", "it is encrypted"},
		{"create -q -f qcow " + path + " 1M", "version 1 of the format is not supported, only 2 and 3 are"},
		{"create -q -f vmdk " + path + " 1M", "the file has another format"},
		{"create -q -f raw " + path + " 1M", "the file has another format"},
	} {
		qemu(t, "qemu-img", c.args)
		to, err := convertFile(t, path, 1<<20)
		must.ErrorContains(t, err, "convert qcow2 disk: "+c.want, must.Sprint(c.args))
		must.EqOp(t, 0, size(t, to.Name()))
	}

	qemu(t, "qemu-img", create+"-o lazy_refcounts=on "+path+" 1M")
	cmd := exec.Command(hosttest.Program(t, "qemu-io", "qemu-utils"), "-f", "qcow2", "-c", "write 0 4k", "-c", "abort", path)
	must.Error(t, cmd.Run()) // qemu-io aborts
	_, err := convertFile(t, path, 1<<20)
	must.ErrorContains(t, err, "convert qcow2 disk: it is marked as dirty")
}
