package disk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/vm/vmtest"
)

// A real udev announces the partitions there.
func TestVMShared(t *testing.T) {
	vmtest.Require(t)
	testShared(t)
}

var rootHash = regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`)

// verityDisk is a disk whose root partition has hashes; their root hash is in a file
// beside it.
func verityDisk(t *testing.T) string {
	root := hosttest.CopyOf(t, hosttest.BusyboxDisk)
	hashes := filepath.Join(t.TempDir(), "hashes")
	out, err := exec.Command("veritysetup", "format", root, hashes).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	hash := string(rootHash.FindSubmatch(out)[1])
	image := hosttest.Disk(t,
		hosttest.Partition{Type: hosttest.RootX86, Content: root, ID: hash[:32]},
		hosttest.Partition{Type: hosttest.RootX86Verity, Content: hashes, ID: hash[32:]})
	sidecar := filepath.Join(filepath.Dir(image), "disk.roothash")
	must.NoError(t, os.WriteFile(sidecar, []byte(hash+"\n"), 0o644))
	return image
}

// readAll reads the largest file of the image.
func readAll(dir string) error {
	_, err := os.ReadFile(filepath.Join(dir, "usr/bin/busybox"))
	return err
}

// Data that was changed after the hashes were made cannot be read.
func TestVMVerity(t *testing.T) {
	vmtest.Require(t)
	m := newMounts(t)
	image := verityDisk(t)
	must.NoError(t, readAll(attach(t, m, "m0", Image{Path: image})))

	must.NoError(t, m.Detach("m0")) // systemd-dissect uses one device for images with the same hash

	busybox, err := os.ReadFile(hosttest.Busybox + "/usr/bin/busybox")
	must.NoError(t, err)
	content, err := os.ReadFile(image)
	must.NoError(t, err)
	at := bytes.Index(content, busybox[1<<19:1<<19+4096])
	must.Positive(t, at)
	content[at] ^= 1
	changed := filepath.Join(t.TempDir(), "disk.raw")
	must.NoError(t, os.WriteFile(changed, content, 0o644))
	must.NoError(t, os.Link(filepath.Join(filepath.Dir(image), "disk.roothash"), filepath.Join(filepath.Dir(changed), "disk.roothash")))
	must.ErrorContains(t, readAll(attach(t, m, "m1", Image{Path: changed})), "input/output error")
}
