package host

import (
	"bufio"
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit := (*exec.ExitError)(nil)
	must.True(t, errors.As(err, &exit), must.Sprint(err))
	return exit.ExitCode()
}

func TestCommand(t *testing.T) {
	h := upForTest(t, Options{})

	t.Run("streams and status", func(t *testing.T) {
		cmd := h.Command(t.Context(), "sh", "-c", "cat; echo complaint >&2; exit 7")
		var out, errOut strings.Builder
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("word"), &out, &errOut
		must.EqOp(t, 7, exitCode(t, cmd.Run()))
		must.EqOp(t, "word", out.String())
		must.EqOp(t, "complaint\n", errOut.String())
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv("FROM_THE_MACHINE", "yes")
		cmd := h.Command(t.Context(), "sh", "-c", "env; pwd; umask")
		cmd.Env = append(cmd.Env, "FROM_THE_TEST=yes")
		out, err := cmd.Output()
		must.NoError(t, err)
		must.StrContains(t, string(out), "FROM_THE_TEST=yes\n")
		must.StrContains(t, string(out), systemdPath+"\n")
		must.StrNotContains(t, string(out), "FROM_THE_MACHINE")
		must.StrHasSuffix(t, "\n/\n0022\n", string(out))
	})
	t.Run("arguments", func(t *testing.T) {
		must.EqOp(t, "-n $HOME\n%n --", output(t, h, "printf", "%s", "-n $HOME\n%n --"))
	})
	t.Run("not found", func(t *testing.T) {
		must.EqOp(t, 127, exitCode(t, h.Command(t.Context(), "nonesuch").Run()))
	})
	t.Run("killed", func(t *testing.T) {
		must.EqOp(t, 128+9, exitCode(t, h.Command(t.Context(), "sh", "-c", "kill -9 $$").Run()))
	})
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1} {
		t.Run(s.String(), func(t *testing.T) { testSignal(t, h, s) })
	}
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := h.Command(ctx, "sh", "-c", "echo $$; exec sleep infinity")
		pid := nextLine(t, startAndScan(t, cmd))
		cancel()
		must.Error(t, cmd.Wait())
		awaitGone(t, h, pid)
	})
}

// testSignal checks that the command itself, not only its helper, gets the signal, and
// gets it once.
func testSignal(t *testing.T, h *Host, s syscall.Signal) {
	script := "trap 'n=$((n+1)); echo got' HUP INT TERM USR1; echo ready; read word; exit $n"
	cmd := h.Command(t.Context(), "bash", "-c", script)
	stdin, err := cmd.StdinPipe()
	must.NoError(t, err)
	lines := startAndScan(t, cmd)
	must.EqOp(t, "ready", nextLine(t, lines))
	must.NoError(t, cmd.Process.Signal(s))
	must.EqOp(t, "got", nextLine(t, lines))
	must.NoError(t, stdin.Close())
	must.EqOp(t, 1, exitCode(t, cmd.Wait()))
}

func startAndScan(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	return bufio.NewScanner(out)
}

func nextLine(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	must.True(t, lines.Scan(), must.Sprint("the command ended early"))
	return lines.Text()
}

// awaitGone waits, in the host, until a process has ended.
func awaitGone(t *testing.T, h *Host, pid string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must.NoError(t, h.Command(ctx, "tail", "--pid="+pid, "-f", "/dev/null").Run())
}

func TestCommandInAHostThatIsDown(t *testing.T) {
	h := upForTest(t, Options{})
	must.NoError(t, h.Down())
	var complaint strings.Builder
	cmd := h.Command(t.Context(), "true")
	cmd.Stderr = &complaint
	must.EqOp(t, 125, exitCode(t, cmd.Run()))
	must.StrContains(t, complaint.String(), "join cgroup")
}
