package driver

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// diskConfig runs a script on an image.
func diskConfig(image, script, more string) string {
	return fmt.Sprintf("image = %q\nnetwork_veth = false\ncommand = \"/bin/sh\"\nargs = [\"-c\", %q]\n%s\n", image, script, more)
}

// TestHostDisk checks that a disk is a lower layer like any tree, shared by all its tasks.
func TestHostDisk(t *testing.T) {
	harness := newHarness(t, `image_paths = ["/srv", "/tmp"]`)
	image := hosttest.Disk(t,
		hosttest.Partition{Type: hosttest.RootX86, Content: hosttest.BusyboxDisk},
		hosttest.Partition{Type: hosttest.Home, Content: hosttest.BusyboxDisk})
	// Check the owners, and that both partitions can be written to.
	const script = `stat -c '%u %n' /etc/passwd /home/etc/passwd; echo >/etc/new && echo >/home/new && echo written; exec sleep 1000`
	var tasks []*drivers.TaskConfig
	for range 3 {
		task := newTask(t, harness, diskConfig(image, script, ""))
		startTask(t, harness, task)
		tasks = append(tasks, task)
	}
	for _, task := range tasks {
		awaitLog(t, task, "stdout", "0 /etc/passwd\n0 /home/etc/passwd\nwritten\n")
		must.SliceLen(t, 1, hosttest.Loops(t, image))
		must.NoError(t, harness.DestroyTask(task.ID, true))
	}
	must.SliceEmpty(t, hosttest.Loops(t, image))
	task, code := run(t, harness, diskConfig(hosttest.BusyboxDisk, "ls /etc/new /home/new 2>&1 | grep -c 'No such file'", ""))
	must.Zero(t, code)
	awaitLog(t, task, "stdout", "2\n")
}

func TestHostDiskInPlace(t *testing.T) {
	harness := newHarness(t, `image_paths = ["/tmp"]`+"\nallow_in_place = true")
	image := hosttest.CopyOf(t, hosttest.BusyboxDisk)
	inPlace := func(script string) string { return diskConfig(image, script, "ephemeral = false") }
	holder := newTask(t, harness, inPlace("id -u; echo kept >/etc/kept; exec sleep 1000"))
	startTask(t, harness, holder)
	awaitLog(t, holder, "stdout", "0\n")
	for _, config := range []string{inPlace("true"), diskConfig(image, "true", "")} {
		_, _, err := harness.StartTask(newTask(t, harness, config))
		must.ErrorContains(t, err, "used by machine "+holder.Name)
	}
	must.NoError(t, harness.DestroyTask(holder.ID, true))
	task, code := run(t, harness, inPlace("cat /etc/kept"))
	must.Zero(t, code)
	awaitLog(t, task, "stdout", "kept\n")
	must.SliceEmpty(t, hosttest.Loops(t, image))
}

// TestHostDiskOfMachined checks that machined finds a disk by the name of its file.
func TestHostDiskOfMachined(t *testing.T) {
	harness := newHarness(t, "")
	path := filepath.Join(images, "disk.raw")
	content, err := os.ReadFile(hosttest.BusyboxDisk)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(path, content, 0o644))
	t.Cleanup(func() { must.NoError(t, os.Remove(path)) })
	task, code := run(t, harness, diskConfig("disk", "echo it runs", ""))
	must.Zero(t, code)
	awaitLog(t, task, "stdout", "it runs\n")
}

// TestHostDiskOfOthers checks that disks of the web or of the job need the operator's
// permission.
func TestHostDiskOfOthers(t *testing.T) {
	cleanStore(t)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	content, err := os.ReadFile(hosttest.BusyboxDisk)
	must.NoError(t, err)
	_, err = w.Write(content)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(packed.Bytes()) }))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	policy := fmt.Sprintf("registry { ca_file = %q }\n", ca)
	web := diskConfig(server.URL+"/disk.raw.gz", "echo it runs", fmt.Sprintf(`image_download { sha256 = "%x" }`, sha256.Sum256(packed.Bytes())))
	own := diskConfig("local/disk.raw", "echo it runs", "")
	prepare := func(task *drivers.TaskConfig) {
		must.NoError(t, os.WriteFile(filepath.Join(task.TaskDir().LocalDir, "disk.raw"), content, 0o644))
	}
	for _, config := range []string{web, own} {
		harness := newHarness(t, policy)
		task := newTask(t, harness, config)
		prepare(task)
		_, _, err := harness.StartTask(task)
		must.ErrorContains(t, err, "allow_disk_images")

		harness = newHarness(t, policy+"allow_disk_images = true")
		task = newTask(t, harness, config)
		prepare(task)
		startTask(t, harness, task)
		must.Zero(t, waitTask(t, harness, task).ExitCode)
		awaitLog(t, task, "stdout", "it runs\n")
		must.NoError(t, harness.DestroyTask(task.ID, false))
	}
}
