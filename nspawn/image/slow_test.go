package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// dribble is a server that sends the beginning of a file, closes begun, and then sends
// nothing.
func dribble(t *testing.T, content []byte) (url string, begun chan struct{}) {
	begun = make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:10])
		w.(http.Flusher).Flush()
		once.Do(func() { close(begun) })
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	return server.URL + "/image.tar", begun
}

func (l *lab) pullAside(t *testing.T, r Request) (result chan error) {
	result = make(chan error, 1)
	go func() {
		_, err := l.pull(t.Context(), r)
		result <- err
	}()
	return result
}

// TestSlowPullHoldsUpNobody pulls a tarball with the checksum of a popular one from an
// attacker's server, which sends almost nothing. Others get the tarball from its real
// origin, and then the attacker's pull ends, too.
func TestSlowPullHoldsUpNobody(t *testing.T) {
	l := newLab(t)
	content := tarOf(t, map[string]string{"a": "b"})
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	url, begun := dribble(t, content)
	attack := l.pullAside(t, Request{Source: Source{Download: download.Request{URL: url, SHA256: sum}}})
	<-begun
	good := localFile(t, content, download.Tar)
	good.Download.SHA256 = sum
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	image, err := l.pull(ctx, Request{Source: good})
	must.NoError(t, err)
	must.FileContains(t, filepath.Join(l.puller.Store.Trees(image)[0], "a"), "b")
	must.NoError(t, <-attack)
}

// TestSlowRegistryHoldsUpNobody does the same with a layer of a registry.
func TestSlowRegistryHoldsUpNobody(t *testing.T) {
	slow, l := newLab(t), newLab(t)
	slow.puller.Store = l.puller.Store
	files := map[string]string{"a": "b"}
	source := slow.push(t, "stranger:1", files)
	found, err := slow.puller.Registry.Resolve(t.Context(), source.Reference, nil, false)
	must.NoError(t, err)
	slow.stall.Store(&found.Layers[0].Digest)
	before := slow.blobs.Load()
	attack := slow.pullAside(t, Request{Source: source})
	for slow.blobs.Load() < before+2 { // its config and its layer
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = l.pull(ctx, Request{Source: l.push(t, "app:1", files)})
	must.NoError(t, err)
	must.NoError(t, <-attack)
}

// TestBadPullHoldsUpNobody uses a pull whose bytes do not have the announced checksum.
func TestBadPullHoldsUpNobody(t *testing.T) {
	l := newLab(t)
	content := tarOf(t, map[string]string{"a": "b"})
	source := localFile(t, content, download.Tar)
	source.Download.SHA256 = fmt.Sprintf("%x", sha256.Sum256(content))
	bad := localFile(t, tarOf(t, map[string]string{"a": "evil"}), download.Tar)
	bad.Download.SHA256 = source.Download.SHA256
	_, err := l.pull(t.Context(), Request{Source: bad})
	must.ErrorContains(t, err, "instead of sha256:"+source.Download.SHA256)
	image, err := l.pull(t.Context(), Request{Source: source})
	must.NoError(t, err)
	must.FileContains(t, filepath.Join(l.puller.Store.Trees(image)[0], "a"), "b")
}

// TestSlowPullsKeepNoMemory uses more slow servers than streams may be decompressed at
// the same time, and one server that is not slow.
func TestSlowPullsKeepNoMemory(t *testing.T) {
	l := newLab(t)
	content := tarOf(t, map[string]string{"a": "b"})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range maxUnpacking + 1 {
		url, begun := dribble(t, content)
		all.Go(func() {
			_, err := l.pull(ctx, Request{Source: Source{Download: download.Request{URL: url, Verify: download.VerifyNo}}})
			must.ErrorIs(t, err, context.Canceled)
		})
		<-begun
	}
	_, err := l.pull(t.Context(), Request{Source: localFile(t, content, download.Tar)})
	must.NoError(t, err)
	cancel() // a pull ends with its context
	all.Wait()
	left, err := os.ReadDir(filepath.Join(l.puller.Store.Dir, "tmp"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	must.MapEmpty(t, servers.slots)
}

// TestServerSlots checks that only a limited number of pulls use one server at a
// time, and that pulls from other servers do not count.
func TestServerSlots(t *testing.T) {
	list := serverList{slots: map[string]*serverSlots{}}
	var all sync.WaitGroup
	stop := make(chan struct{})
	begun := make(chan struct{}, maxPerServer)
	for range maxPerServer {
		all.Go(func() {
			_ = list.fetching(t.Context(), "slow", func() error { begun <- struct{}{}; <-stop; return nil })
		})
	}
	for range maxPerServer {
		<-begun
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.ErrorIs(t, list.fetching(ctx, "slow", nil), context.Canceled)
	called := false
	must.NoError(t, list.fetching(t.Context(), "fast", func() error { called = true; return nil }))
	must.True(t, called)
	close(stop)
	all.Wait()
	must.MapEmpty(t, list.slots)
}

// TestWindows uses streams that need a large window, which are unpacked again with one,
// and streams that need more, which are refused and take no memory.
func TestWindows(t *testing.T) {
	l := newLab(t)
	content := bytes.Repeat(tarOf(t, map[string]string{"a": "b"}), 1)
	for name, c := range map[string]struct {
		tool []string
		want string
	}{
		"xz -9":          {[]string{"xz", "-9c"}, ""},
		"zstd --long=27": {[]string{"zstd", "-qc", "--long=27"}, ""},
		"zstd --long=30": {[]string{"zstd", "-qc", "--ultra", "--long=30"}, "its window is larger than 128 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			tool := exec.Command(c.tool[0], c.tool[1:]...)
			tool.Stdin = bytes.NewReader(content)
			packed, err := tool.Output()
			must.NoError(t, err)
			for _, kind := range []download.Kind{download.Tar, download.Raw} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				image, err := l.pull(t.Context(), Request{Source: localFile(t, packed, kind)})
				runtime.ReadMemStats(&after)
				if c.want != "" {
					must.ErrorContains(t, err, c.want)
					must.False(t, Temporary(err))
					must.Less(t, uint64(64<<20), after.TotalAlloc-before.TotalAlloc)
					continue
				}
				must.NoError(t, err)
				if kind == download.Raw {
					got, err := os.ReadFile(l.puller.Store.DiskFile(image))
					must.NoError(t, err)
					must.True(t, bytes.Equal(content, got))
					continue
				}
				must.FileContains(t, filepath.Join(l.puller.Store.Trees(image)[0], "a"), "b")
			}
		})
	}
}

// TestBudget uses a store on a small file system.
func TestBudget(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=100m,nr_inodes=2000"))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	l := newLab(t)
	l.puller.Store = store.Store{Dir: filepath.Join(dir, "store")}
	noise := func(size int) string {
		text := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{}).Read(text)
		return string(text)
	}
	many := map[string]string{}
	for i := range 60_000 {
		many[fmt.Sprint(i)] = ""
	}
	free := func() uint64 {
		var fs unix.Statfs_t
		must.NoError(t, unix.Statfs(dir, &fs))
		return fs.Bavail * uint64(fs.Bsize)
	}
	_, err := l.pull(t.Context(), Request{Source: localFile(t, tarOf(t, map[string]string{"a": noise(90 << 20)}), download.Tar)})
	must.ErrorContains(t, err, "must stay free")
	must.ErrorIs(t, err, unix.ENOSPC)
	must.Greater(t, 99<<20, free())
	_, err = l.pull(t.Context(), Request{Source: l.push(t, "large:1", map[string]string{"a": noise(60 << 20)})})
	must.ErrorContains(t, err, "must stay free")
	must.Greater(t, 99<<20, free())
	_, err = l.pull(t.Context(), Request{Source: localFile(t, tarOf(t, many), download.Tar)})
	must.ErrorIs(t, err, unix.ENOSPC)

	l.puller.MaxBytes = 20 << 20
	_, err = l.pull(t.Context(), Request{Source: localFile(t, tarOf(t, map[string]string{"a": noise(30 << 20)}), download.Tar)})
	must.ErrorContains(t, err, "image_gc.max_size")
	_, err = l.pull(t.Context(), Request{Source: l.push(t, "small:1", map[string]string{"a": noise(1 << 20)})})
	must.NoError(t, err)
	l.puller.MaxBytes = 1 << 20
	_, err = l.pull(t.Context(), Request{Source: l.push(t, "small:2", map[string]string{"b": ""})})
	must.ErrorContains(t, err, "its limit is 1048576 (image_gc.max_size)")
	_, err = l.pull(t.Context(), Request{Source: Source{Reference: oci.Reference{Registry: l.address, Repository: "small", Tag: "1"}}})
	must.NoError(t, err, must.Sprint("what is there needs no room"))
}
