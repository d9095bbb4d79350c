package driver

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/cli"
	"nomad-driver-nspawn/e2e/host/hosttest"
)

// testRegistry is a registry that counts requests.
type testRegistry struct {
	address string
	blobs   atomic.Int32
}

func newRegistry(t *testing.T) *testRegistry {
	r := &testRegistry{}
	handler := registry.New()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if request.Method == http.MethodGet && strings.Contains(request.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		handler.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	r.address = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *testRegistry) policy() string {
	return fmt.Sprintf("registry { plain_http = [%q] }", r.address)
}

// push pushes an image of layers over the busybox tree.
func (r *testRegistry) push(t *testing.T, image string, config v1.Config, layers ...map[string]string) string {
	tree, err := exec.Command("tar", "-C", hosttest.Busybox, "-c", ".").Output()
	must.NoError(t, err)
	archives := [][]byte{tree}
	for _, files := range layers {
		archives = append(archives, tarOf(t, files))
	}
	var built v1.Image = empty.Image
	for _, archive := range archives {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
		must.NoError(t, err)
		built, err = mutate.AppendLayers(built, layer)
		must.NoError(t, err)
	}
	built, err = mutate.Config(built, config)
	must.NoError(t, err)
	reference, err := name.ParseReference(r.address+"/"+image, name.Insecure)
	must.NoError(t, err)
	must.NoError(t, remote.Write(reference, built))
	return r.address + "/" + image
}

func tarOf(t *testing.T, files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for path, content := range files {
		must.NoError(t, w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write([]byte(content))
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return buf.Bytes()
}

// cleanStore removes at the end what a test has pulled, and checks that nothing is in use
// then.
func cleanStore(t *testing.T) {
	hosttest.Require(t)
	t.Cleanup(func() {
		ctx := context.Background()
		must.NoError(t, cli.Images(ctx, []string{"prune"}, io.Discard))
		left, err := imageStore.List(ctx)
		must.NoError(t, err)
		must.SliceEmpty(t, left.Images)
	})
}

func pulled(image, more string) string {
	return fmt.Sprintf("image = %q\nnetwork_veth = false\n", image) + more
}

// run runs a task to its end.
func run(t *testing.T, harness *testutils.DriverHarness, config string) (task *drivers.TaskConfig, code int) {
	task = newTask(t, harness, config)
	startTask(t, harness, task)
	code = waitTask(t, harness, task).ExitCode
	must.NoError(t, harness.DestroyTask(task.ID, false))
	return task, code
}

// TestHostImageOfRegistry checks that the image's config has the same effect as with
// docker, and that later layers cover earlier ones.
func TestHostImageOfRegistry(t *testing.T) {
	cleanStore(t)
	r := newRegistry(t)
	image := r.push(t, "team/app:1", v1.Config{
		Entrypoint: []string{"/bin/sh", "-c"},
		Cmd:        []string{`echo $COLOR $GREETING; cat /etc/motd; ls /etc/gone /etc/kept; pwd; exit 7`},
		Env:        []string{"COLOR=blue", "GREETING=of the image", "PATH=/bin"},
		WorkingDir: "/etc",
	}, map[string]string{"etc/motd": "lower\n", "etc/gone": "", "etc/kept": ""}, map[string]string{"etc/motd": "upper\n", "etc/.wh.gone": ""})
	harness := newHarness(t, r.policy())
	task, code := run(t, harness, pulled(image, ""))
	awaitLog(t, task, "stdout", "blue hello\nupper\n/etc/kept\n/etc\n")
	must.Eq(t, 7, code)

	fetched := r.blobs.Load()
	task, code = run(t, harness, pulled(image, `args = ["echo again"]`))
	awaitLog(t, task, "stdout", "again\n")
	must.Zero(t, code)
	must.Eq(t, fetched, r.blobs.Load())
}

// TestHostImageIsFetchedOnce checks that many tasks that start at the same time fetch
// their image once.
func TestHostImageIsFetchedOnce(t *testing.T) {
	cleanStore(t)
	r := newRegistry(t)
	image := r.push(t, "once:1", v1.Config{Cmd: []string{"/bin/true"}}, map[string]string{"etc/a": "a"})
	harness := newHarness(t, r.policy())
	var all sync.WaitGroup
	for range 10 {
		task := newTask(t, harness, pulled(image, ""))
		all.Go(func() {
			if _, _, err := harness.StartTask(task); err != nil {
				t.Errorf("start: %v", err)
				return
			}
			results, err := harness.WaitTask(t.Context(), task.ID)
			if err != nil {
				t.Errorf("wait: %v", err)
				return
			}
			if result := <-results; result == nil || !result.Successful() {
				t.Errorf("the task has ended with %v", result)
			}
		})
	}
	all.Wait()
	// The config is one blob and fetched by each of 10 tasks. The two layers are fetched
	// once.
	must.Between(t, 3, r.blobs.Load(), 12)
}

func TestHostImageStopSignal(t *testing.T) {
	cleanStore(t)
	r := newRegistry(t)
	image := r.push(t, "stop:1", v1.Config{
		Cmd:        []string{"/bin/sh", "-c", "trap 'exit 5' QUIT; echo up; while :; do sleep 1000 & wait $!; done"},
		StopSignal: "SIGQUIT",
	})
	harness := newHarness(t, r.policy())
	task := newTask(t, harness, pulled(image, ""))
	startTask(t, harness, task)
	awaitLog(t, task, "stdout", "up\n")
	must.NoError(t, harness.StopTask(task.ID, time.Minute, ""))
	must.Eq(t, 5, waitTask(t, harness, task).ExitCode)
}

// TestHostImageIsCollected checks that an image in use is not collected, not even by
// another process, and that it is collected afterwards.
func TestHostImageIsCollected(t *testing.T) {
	cleanStore(t)
	r := newRegistry(t)
	image := r.push(t, "gc:1", v1.Config{Cmd: []string{"/bin/sleep", "1000"}})
	harness := newHarness(t, r.policy())
	task := newTask(t, harness, pulled(image, ""))
	startTask(t, harness, task)
	list := func() string {
		var out strings.Builder
		must.NoError(t, cli.Images(t.Context(), nil, &out))
		return out.String()
	}
	prune := func() string {
		var out strings.Builder
		must.NoError(t, cli.Images(t.Context(), []string{"prune"}, &out))
		return out.String()
	}
	must.StrContains(t, list(), image)
	must.StrContains(t, list(), task.Name)
	must.StrContains(t, prune(), "removed 0 images")
	result, err := harness.ExecTask(task.ID, []string{"/bin/ls", "/bin/busybox"}, time.Minute)
	must.NoError(t, err)
	must.Zero(t, result.ExitResult.ExitCode)
	must.NoError(t, harness.DestroyTask(task.ID, true))
	must.StrContains(t, prune(), "removed 1 images")
	must.StrNotContains(t, list(), image)
	left, err := os.ReadDir(filepath.Join(imageStore.Dir, "layers"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

// TestHostImageThatIsNotThere checks that a failed pull leaves nothing incomplete, and
// that the error says what to do.
func TestHostImageThatIsNotThere(t *testing.T) {
	cleanStore(t)
	r := newRegistry(t)
	there := r.push(t, "app:1", v1.Config{})
	unseen := r.push(t, "unseen:1", v1.Config{}) // not pulled by another case
	for name, c := range map[string]struct{ config, want string }{
		"no such tag":   {pulled(r.address+"/app:2", ""), "404"},
		"not pulled":    {pulled(unseen, `pull_policy = "never"`), "pull_policy is never"},
		"no command":    {pulled(there, ""), "command: is required"},
		"no TLS":        {pulled("127.0.0.1:1/app:1", ""), "plain HTTP"},
		"no reference":  {pulled("docker://UPPER", ""), "want [REGISTRY/]REPOSITORY"},
		"other archive": {pulled("oci-archive:/etc/passwd", ""), "image_paths"},
	} {
		t.Run(name, func(t *testing.T) {
			harness := newHarness(t, r.policy())
			_, _, err := harness.StartTask(newTask(t, harness, c.config))
			must.ErrorContains(t, err, c.want)
			t.Log(err)
		})
	}
}

// newTarballServer serves a busybox tarball, its checksum, and other files.
func newTarballServer(t *testing.T) (server *httptest.Server, policy string) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "busybox.tar.gz")
	must.NoError(t, exec.Command("tar", "-C", hosttest.Busybox, "-czf", archive, ".").Run())
	content, err := os.ReadFile(archive)
	must.NoError(t, err)
	for _, name := range []string{"wrong.tar.gz", "missing.tar.gz"} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	}
	must.NoError(t, os.WriteFile(filepath.Join(dir, "cut.tar.gz"), content[:len(content)/2], 0o644))
	sums := fmt.Sprintf("%x  busybox.tar.gz\n%064d  wrong.tar.gz\n%x  cut.tar.gz\n", sha256.Sum256(content), 1, sha256.Sum256(content[:len(content)/2]))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums), 0o644))
	server = httptest.NewTLSServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	ca := filepath.Join(dir, "ca.pem")
	must.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	return server, fmt.Sprintf("registry { ca_file = %q }", ca)
}

func TestHostTarball(t *testing.T) {
	cleanStore(t)
	server, policy := newTarballServer(t)
	const command = `
command = "/bin/sh"
args    = ["-c", "echo it runs"]
`
	harness := newHarness(t, policy)
	task, code := run(t, harness, pulled(server.URL+"/busybox.tar.gz", command))
	awaitLog(t, task, "stdout", "it runs\n")
	must.Zero(t, code)
	for name, c := range map[string]struct{ config, want string }{
		"wrong checksum":   {pulled(server.URL+"/wrong.tar.gz", command), "checksum"},
		"missing checksum": {pulled(server.URL+"/missing.tar.gz", command), "missing.tar.gz"},
		"cut":              {pulled(server.URL+"/cut.tar.gz", command), "unpack"},
		"not verified":     {pulled(server.URL+"/missing.tar.gz", command+`image_download { verify = "no" }`), "allow_unverified_images"},
		"a disk":           {pulled(server.URL+"/disk.raw", command), "allow_disk_images"},
	} {
		t.Run(name, func(t *testing.T) {
			harness := newHarness(t, policy)
			_, _, err := harness.StartTask(newTask(t, harness, c.config))
			must.ErrorContains(t, err, c.want)
			t.Log(err)
		})
	}
	list, err := imageStore.List(t.Context())
	must.NoError(t, err)
	must.SliceLen(t, 1, list.Images, must.Sprint(list.Images))
}

// TestHostImageOfTask runs an image that an artifact block has put into the task's
// directory.
func TestHostImageOfTask(t *testing.T) {
	cleanStore(t)
	harness := newHarness(t, "")
	task := newTask(t, harness, pulled("local/image.tar", "command = \"/bin/sh\"\nargs = [\"-c\", \"echo it runs\"]\n"))
	must.NoError(t, exec.Command("tar", "-C", hosttest.Busybox, "-cf", filepath.Join(task.TaskDir().LocalDir, "image.tar"), ".").Run())
	startTask(t, harness, task)
	must.Zero(t, waitTask(t, harness, task).ExitCode)
	awaitLog(t, task, "stdout", "it runs\n")
}
