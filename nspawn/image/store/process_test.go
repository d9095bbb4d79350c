package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// Environment variables that say what a child process does, in which store and for which
// machine.
const (
	childAct     = "STORE_TEST_CHILD"
	childDir     = "STORE_TEST_DIR"
	childMachine = "STORE_TEST_MACHINE"
)

var children = map[string]func(Store){"layer": askLayer, "churn": churnForever}

// askLayer gets layer "a". Its fill stops half way until standard input ends.
func askLayer(s Store) {
	a := digest("a")
	fmt.Println("asking")
	p := s.Begin()
	path, err := p.Layer(context.Background(), a, "here", func(ctx context.Context, dir string) error {
		if err := fillTree("half")(ctx, dir); err != nil {
			return err
		}
		fmt.Println("filling")
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		return fillTree(a)(ctx, dir)
	})
	if err == nil {
		err = checkTree(path, a)
	}
	fmt.Println("done:", err)
}

// child is a process that uses a store.
type child struct {
	*exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

func startChild(t *testing.T, s Store, act, machine string, attr *syscall.SysProcAttr) child {
	t.Helper()
	command := exec.Command("/proc/self/exe")
	command.Env = append(os.Environ(), childAct+"="+act, childDir+"="+s.Dir, childMachine+"="+machine)
	command.Stderr = os.Stderr
	command.SysProcAttr = attr
	stdin, err := command.StdinPipe()
	must.NoError(t, err)
	stdout, err := command.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, command.Start())
	c := child{command, stdin, bufio.NewScanner(stdout)}
	t.Cleanup(c.kill)
	return c
}

func (c child) kill() {
	_ = c.Process.Kill() // it may have ended
	_ = c.Wait()
}

// says waits for the next line.
func (c child) says(t *testing.T, want string) {
	t.Helper()
	must.True(t, c.lines.Scan(), must.Sprintf("child ended, want %q", want))
	must.Eq(t, want, c.lines.Text())
}

func TestProcessesFillOnce(t *testing.T) {
	s := newStore(t)
	first := startChild(t, s, "layer", "", nil)
	first.says(t, "asking")
	first.says(t, "filling")
	var others []child
	for range 6 {
		other := startChild(t, s, "layer", "", nil)
		other.says(t, "asking")
		others = append(others, other)
	}
	must.NoError(t, first.stdin.Close())
	for _, c := range append(others, first) {
		c.says(t, "done: <nil>")
	}
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

func TestKilledWhileFilling(t *testing.T) {
	s, a := newStore(t), digest("a")
	killed := startChild(t, s, "layer", "", nil)
	killed.says(t, "asking")
	killed.says(t, "filling")
	waiting := startChild(t, s, "layer", "", nil)
	waiting.says(t, "asking")
	killed.kill()
	waiting.says(t, "filling")
	must.SliceLen(t, 1, contents(t, s, "tmp"))
	waiting.kill()
	must.SliceEmpty(t, contents(t, s, "layers"))

	p := s.Begin()
	defer p.Close()
	path, err := p.Layer(t.Context(), a, "here", fillTree(a))
	must.NoError(t, err)
	must.NoError(t, checkTree(path, a))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestKilledIsSwept leaves a half-written layer that no pull needs again, and a
// half-written file.
func TestKilledIsSwept(t *testing.T) {
	s, b := newStore(t), digest("b")
	killed := startChild(t, s, "layer", "", nil)
	killed.says(t, "asking")
	killed.says(t, "filling")
	p := s.Begin()
	defer p.Close()
	_, err := p.Layer(t.Context(), b, "here", fillTree(b))
	must.NoError(t, err)
	_, err = s.Collect(t.Context(), CollectOptions{})
	must.NoError(t, err)
	must.SliceLen(t, 1, contents(t, s, "tmp")) // it is still alive
	killed.kill()
	must.NoError(t, os.WriteFile(s.tmpName(), []byte("{"), 0o600))
	must.SliceLen(t, 2, contents(t, s, "tmp"))
	_, err = s.Collect(t.Context(), CollectOptions{})
	must.NoError(t, err)
	must.SliceEmpty(t, contents(t, s, "tmp"))

	killed = startChild(t, s, "layer", "", nil)
	killed.says(t, "asking")
	killed.says(t, "filling")
	killed.kill()
	c := digest("c")
	_, err = p.Layer(t.Context(), c, "here", fillTree(c)) // this sweeps, too
	must.NoError(t, err)
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

func TestPermissionDenied(t *testing.T) {
	hosttest.RequireRoot(t)
	s := newStore(t)
	must.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(s.Dir)), 0o755))
	mustPull(t, s, imageOfLayers("image", "b"), "name")
	c := startChild(t, s, "layer", "", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
	c.says(t, "asking")
	must.True(t, c.lines.Scan())
	must.StrContains(t, c.lines.Text(), "get layer "+digest("a")+": ")
	must.StrContains(t, c.lines.Text(), filepath.Base(s.Dir))
	must.True(t, strings.HasSuffix(c.lines.Text(), "permission denied"))
}
