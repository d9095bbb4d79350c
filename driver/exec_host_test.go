package driver

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
)

// gibibyte is what goes through an exec of `tar`.
const gibibyte = 1 << 30

// maxExecMemory is how much more memory the plugin may use while it does.
const maxExecMemory = 32 << 20

// nopCloser is a stream that the client closes by itself.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// execOptions are those of a client without a terminal.
func execOptions(stdin io.Reader, stdout, stderr io.Writer, argv ...string) *drivers.ExecOptions {
	return &drivers.ExecOptions{Command: argv, Stdin: io.NopCloser(stdin), Stdout: nopCloser{stdout}, Stderr: nopCloser{stderr}}
}

// execDirectly has the plugin's own side of an exec, without Nomad's buffers.
func execDirectly(ctx context.Context, harness *testutils.DriverHarness, task *drivers.TaskConfig, options *drivers.ExecOptions) (int, error) {
	result, err := harness.Impl().(flushing).Driver.ExecTaskStreaming(ctx, task.ID, options)
	if err != nil {
		return 0, err
	}
	return result.ExitCode, nil
}

// zeros are a number of bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zero{}, n) }

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func sumOfZeros(t *testing.T, n int64) string {
	sum := sha256.New()
	_, err := io.Copy(sum, zeros(n))
	must.NoError(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

// peakMemory returns how much more memory the heap had than before, at most, while run ran.
func peakMemory(run func()) uint64 {
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapInuse
	}
	runtime.GC()
	before, peak := heap(), uint64(0)
	done, measured := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(measured)
		for {
			peak = max(peak, heap())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	run()
	close(done)
	<-measured
	return peak - min(peak, before)
}

// A gibibyte goes into a container by tar, and out of it, and the plugin holds no more
// than a few buffers of it.
func TestHostExecLargeStreams(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, script(untilStopped))
	startTask(t, harness, task)
	want := sumOfZeros(t, gibibyte)
	t.Run("in", func(t *testing.T) {
		reader, writer := io.Pipe()
		go func() {
			archive := tar.NewWriter(writer)
			err := archive.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: gibibyte})
			_, copyErr := io.Copy(archive, zeros(gibibyte))
			writer.CloseWithError(errors.Join(err, copyErr, archive.Close()))
		}()
		var stdout, stderr bytes.Buffer
		grown := peakMemory(func() {
			code, err := execDirectly(t.Context(), harness, task, execOptions(reader, &stdout, &stderr, "/bin/sh", "-c", "tar -xOf - big | sha256sum"))
			must.NoError(t, err)
			must.Zero(t, code, must.Sprint(stderr.String()))
		})
		must.Eq(t, want+"  -\n", stdout.String())
		must.Less(t, maxExecMemory, grown)
	})
	t.Run("out", func(t *testing.T) {
		reader, writer := io.Pipe()
		sum, sumErr := make(chan string, 1), make(chan error, 1)
		go func() {
			archive, hash := tar.NewReader(reader), sha256.New()
			_, err := archive.Next()
			if err == nil {
				_, err = io.Copy(hash, archive)
			}
			_, restErr := io.Copy(io.Discard, reader)
			sum <- hex.EncodeToString(hash.Sum(nil))
			sumErr <- errors.Join(err, restErr)
		}()
		var stderr bytes.Buffer
		grown := peakMemory(func() {
			code, err := execDirectly(t.Context(), harness, task, execOptions(strings.NewReader(""), writer, &stderr,
				"/bin/sh", "-c", fmt.Sprintf("cd /tmp && truncate -s %d big && tar -cf - big", gibibyte)))
			writer.CloseWithError(err)
			must.NoError(t, err)
			must.Zero(t, code, must.Sprint(stderr.String()))
		})
		must.Eq(t, want, <-sum)
		must.NoError(t, <-sumErr)
		must.Less(t, maxExecMemory, grown)
	})
}

// descriptors returns how many files the plugin has open.
func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}

// awaitDescriptors waits until the plugin has no more files open than before.
func awaitDescriptors(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); descriptors(t) > before; time.Sleep(10 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprintf("%d files are open, and were %d before", descriptors(t), before))
	}
}

// processes returns how many there are in the container, and how many of them are marked.
func processes(t *testing.T, harness *testutils.DriverHarness, task *drivers.TaskConfig) (all, marked int) {
	t.Helper()
	var out bytes.Buffer
	code, err := execDirectly(t.Context(), harness, task, execOptions(strings.NewReader(""), &out, io.Discard,
		"/bin/sh", "-c", "set -- /proc/[0-9]*; echo $#; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[s]leep "+mark+" ' | wc -l"))
	must.NoError(t, err)
	must.Zero(t, code)
	_, err = fmt.Sscan(out.String(), &all, &marked)
	must.NoError(t, err, must.Sprint(out.String()))
	return all, marked
}

// mark is in the words of a process that must not stay.
const mark = "98765"

// Fifty commands at once have each its own streams and exit code.
func TestHostExecFiftyAtOnce(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, script(untilStopped))
	startTask(t, harness, task)
	_, _ = processes(t, harness, task) // opens what the plugin keeps open
	before := descriptors(t)
	var running sync.WaitGroup
	failed := make(chan error, 50)
	for n := range 50 {
		running.Go(func() {
			input := bytes.Repeat(fmt.Appendf(nil, "%02d\n", n), 1<<16)
			var stdout, stderr bytes.Buffer
			code, err := execDirectly(t.Context(), harness, task, execOptions(bytes.NewReader(input), &stdout, &stderr,
				"/bin/sh", "-c", fmt.Sprintf("cat; echo %d >&2; exit %d", n, n)))
			if err != nil || code != n || !bytes.Equal(input, stdout.Bytes()) || stderr.String() != fmt.Sprintln(n) {
				failed <- fmt.Errorf("command %d: code %d, %d bytes, stderr %q, %w", n, code, stdout.Len(), stderr.String(), err)
			}
		})
	}
	running.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	awaitDescriptors(t, before)
}

// stuck is a client's end that takes nothing more, until the client is gone.
type stuck struct {
	ctx  context.Context
	once sync.Once
	seen chan struct{} // closed when the command has begun to write
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.seen) })
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// A client that is killed, while it reads or while it writes, leaves no process and no
// open file, whatever the command has started and ignores.
func TestHostExecKilledClient(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, script("exec sleep 1000")) // which starts nothing more
	startTask(t, harness, task)
	all, _ := processes(t, harness, task)
	before := descriptors(t)
	const child = "(trap '' HUP TERM INT; exec setsid sleep " + mark + ") & "
	for name, script := range map[string]string{
		"waits":  child + "echo begun; wait",
		"writes": child + "yes",
		"reads":  child + "echo begun; cat >/dev/null",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, kill := context.WithCancel(t.Context())
			defer kill()
			stdin, input := io.Pipe() // which never ends by itself
			defer input.Close()
			stdout := &stuck{ctx: ctx, seen: make(chan struct{})}
			ended := make(chan error, 1)
			go func() {
				_, err := execDirectly(ctx, harness, task, execOptions(stdin, stdout, io.Discard, "/bin/sh", "-c", script))
				ended <- err
			}()
			<-stdout.seen
			for marked := 0; marked == 0; _, marked = processes(t, harness, task) {
			}
			kill()
			input.CloseWithError(context.Canceled)
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatal("the exec of a client that is gone does not end")
			}
			left, _ := processes(t, harness, task)
			must.Eq(t, all, left)
		})
	}
	awaitDescriptors(t, before)
}
