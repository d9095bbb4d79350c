package enter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// namespaces lists the leader's namespaces in which the process must be.
var namespaces = []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}

// inherited lists the lines of /proc/PID/status that must equal the leader's.
var inherited = []string{"CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters"}

func TestHostConfinement(t *testing.T) {
	netns := fmt.Sprintf("enter%d", os.Getpid())
	run(t, "ip", "netns", "add", netns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", netns) })
	inNetns := []string{"NetworkNamespacePath=/run/netns/" + netns}
	filter := "--system-call-filter=~setpriority" // renice needs this system call

	for name, s := range map[string]setup{
		"pid1":          {mode: asPID1, options: []string{filter}},
		"pid1 private":  {mode: asPID1, options: []string{filter, "--no-new-privileges=yes"}, private: true, properties: inNetns},
		"pid2":          {mode: asPID2, options: []string{filter, "--drop-capability=CAP_SYS_ADMIN"}, properties: inNetns},
		"pid2 private":  {mode: asPID2, options: []string{filter, "--rlimit=RLIMIT_NOFILE=333:444"}, private: true, properties: inNetns},
		"pid2 no admin": {mode: asPID2, options: []string{filter, "--drop-capability=all"}, private: true},
		"pid2 veth":     {mode: asPID2, options: []string{filter, "--network-veth"}, private: true, properties: []string{"OOMScoreAdjust=555"}},
		"boot":          {mode: boot, options: []string{filter}, private: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := startMachine(t, s)
			checkConfinement(t, m, "")
			checkConfinement(t, m, "65534:65534")
		})
	}
}

func checkConfinement(t *testing.T, m *machine, user string) {
	t.Helper()
	e := m.do(t, Command{User: user, Argv: []string{"/bin/sh", "-c", `
		cd /proc/self/ns; for n in *; do readlink $n; done
		cat /proc/self/status /proc/self/oom_score_adj /proc/self/limits; grep -h flags /proc/$$/fdinfo/[012]; echo FDS; ls -1 /proc/$$/fd; umask
		renice -n 5 -p $$`}})
	proc := fmt.Sprintf("/proc/%d/", m.target.Leader)
	for _, ns := range namespaces {
		link, err := os.Readlink(proc + "ns/" + ns)
		must.NoError(t, err)
		must.StrContains(t, e.stdout, link)
	}
	status, err := readStatus(m.target.Leader)
	must.NoError(t, err)
	must.EqOp(t, "2", status["Seccomp"])
	for _, key := range inherited {
		must.StrContains(t, e.stdout, key+":\t"+status[key]+"\n")
	}
	for _, key := range []string{"SigBlk", "SigIgn", "SigCgt", "CapInh", "CapAmb"} {
		must.StrContains(t, e.stdout, key+":\t0000000000000000\n")
	}
	if user != "" {
		must.StrContains(t, e.stdout, "CapPrm:\t0000000000000000\n")
	} else {
		must.StrContains(t, e.stdout, "CapEff:\t"+status["CapBnd"]+"\n")
	}
	for _, name := range []string{"oom_score_adj", "limits"} {
		content, err := os.ReadFile(proc + name)
		must.NoError(t, err)
		must.StrContains(t, e.stdout, string(content))
	}
	must.StrContains(t, e.stdout, "flags:\t00\nflags:\t01\nflags:\t01\nFDS\n0\n1\n2\n0022\n")
	must.StrContains(t, e.stderr, "Operation not permitted") // the filter forbids renice
}

// TestHostStarting enters machines as soon as systemd-nspawn has reported that they are
// ready, but has not yet confined the leader.
func TestHostStarting(t *testing.T) {
	for n := range 10 {
		mode := []string{asPID1, asPID2}[n%2]
		m := launchMachine(t, setup{mode: mode, private: n%4 < 2})
		got := m.sh(t, "grep -E '^(CapBnd|Seccomp_filters):' /proc/self/status")
		m.settle(t, mode)
		must.EqOp(t, m.sh(t, "grep -E '^(CapBnd|Seccomp_filters):' /proc/1/status"), got)
	}
}

// TestHostCgroup checks from the host, where no cgroup namespace shortens the path, which
// processes are in the process's cgroup.
func TestHostCgroup(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	input, feed, err := os.Pipe()
	must.NoError(t, err)
	defer input.Close()
	before := members(t, m)
	done := make(chan ended)
	go func() { done <- m.do(t, Command{Argv: []string{"cat"}, Stdin: input}) }()
	_, err = feed.WriteString("x")
	must.NoError(t, err)
	waitFor(t, func() bool { return len(members(t, m)) == len(before)+1 })
	must.NoError(t, feed.Close())
	must.EqOp(t, ended{0, "x", ""}, <-done)
	must.Eq(t, before, members(t, m))
}

// members returns the machine's own processes, only its init if it is booted, and the
// processes that have entered.
func members(t testing.TB, m *machine) (pids []string) {
	t.Helper()
	for _, group := range append([]string{m.target.Cgroup}, m.groups(t)...) {
		procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		must.NoError(t, ignoreGone(err))
		pids = append(pids, strings.Fields(string(procs))...)
	}
	return pids
}

// groups returns the groups of the commands that have entered.
func (m *machine) groups(t testing.TB) []string {
	t.Helper()
	groups, err := filepath.Glob(filepath.Join(m.target.Delegated, groupPrefix+"*"+groupSuffix))
	must.NoError(t, err)
	return groups
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func TestHostUser(t *testing.T) {
	for _, private := range []bool{false, true} {
		t.Run(fmt.Sprint("private=", private), func(t *testing.T) {
			m := startMachine(t, setup{mode: asPID2, private: private})
			m.sh(t, `printf 'audio:x:29:root,app\nvideo:x:44:app\n' >>/etc/group; mkdir -p /home/app; chown app /home/app`)
			for user, want := range map[string]string{
				"":           "0 0 0 29 /root root",
				"root":       "0 0 0 29 /root root",
				"app":        "1000 1000 1000 29 44 /home/app app",
				"1000":       "1000 1000 1000 29 44 /home/app app",
				"app:audio":  "1000 29 29 /home/app app",
				"app:77":     "1000 77 77 /home/app app",
				"4321":       "4321 0 0 / ",
				"4321:video": "4321 44 44 / ",
			} {
				e := m.do(t, Command{User: user, Argv: []string{"sh", "-c", "echo $(id -u; id -g; id -G) $HOME $USER; echo >>/dev/stderr"}})
				must.EqOp(t, ended{0, strings.TrimSpace(want), "\n"}, ended{e.code, strings.TrimSpace(e.stdout), e.stderr}, must.Sprint(user))
			}
			for user, complaint := range map[string]string{
				"nemo":        `find user "nemo"`,
				"app:nogrp":   `find group "nogrp"`,
				"app:":        `find user "app:"`,
				"99999999999": `find user "99999999999"`,
			} {
				_, err := Run(t.Context(), m.target, Command{User: user, Argv: []string{"true"}})
				must.ErrorContains(t, err, complaint)
			}
			if private { // a number outside of its user namespace
				_, err := Run(t.Context(), m.target, Command{User: "70000", Argv: []string{"true"}})
				must.ErrorContains(t, err, "set uid 70000")
			}
		})
	}
}

func TestHostResult(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	m.sh(t, "echo not a program >/tmp/text; chmod 755 /tmp/text; echo '#!/no/such' >/tmp/script; chmod 755 /tmp/script; mkdir -p /opt; echo '#!/bin/echo' >/opt/tool; chmod 755 /opt/tool")
	for name, test := range map[string]struct {
		command Command
		want    ended
	}{
		"success":       {Command{Argv: []string{"true"}}, ended{}},
		"code":          {Command{Argv: []string{"sh", "-c", "exit 7"}}, ended{code: 7}},
		"signal":        {Command{Argv: []string{"sh", "-c", "kill -TERM $$"}}, ended{code: 143}},
		"streams":       {Command{Argv: []string{"sh", "-c", "echo out; echo err >&2"}}, ended{0, "out\n", "err\n"}},
		"arguments":     {Command{Argv: []string{"printf", "<%s>", "", "a b", "$HOME", "ä\n"}}, ended{0, "<><a b><$HOME><ä\n>", ""}},
		"environment":   {Command{Argv: []string{"sh", "-c", "echo $A$HOME"}, Env: []string{"A=1", "HOME=/h"}}, ended{0, "1/h\n", ""}},
		"directory":     {Command{Argv: []string{"pwd"}, Dir: "/tmp"}, ended{0, "/tmp\n", ""}},
		"no directory":  {Command{Argv: []string{"pwd"}}, ended{0, "/\n", ""}},
		"path":          {Command{Argv: []string{"tool", "x"}, Env: []string{"PATH=/nowhere:/opt"}}, ended{0, "/opt/tool x\n", ""}},
		"no input":      {Command{Argv: []string{"cat"}}, ended{}},
		"input":         {Command{Argv: []string{"wc", "-c"}, Stdin: strings.NewReader("12345")}, ended{0, "5\n", ""}},
		"unread input":  {Command{Argv: []string{"true"}, Stdin: strings.NewReader(strings.Repeat("x", 1<<20))}, ended{}},
		"not found":     {Command{Argv: []string{"nothing"}}, ended{127, "", "nothing: not found\n"}},
		"no file":       {Command{Argv: []string{"/bin/nothing"}}, ended{127, "", "/bin/nothing: not found\n"}},
		"interpreter":   {Command{Argv: []string{"/tmp/script"}}, ended{127, "", "/tmp/script: not found\n"}},
		"no program":    {Command{Argv: []string{"/tmp/text"}}, ended{126, "", "/tmp/text: exec format error\n"}},
		"a directory":   {Command{Argv: []string{"/tmp"}}, ended{126, "", "/tmp: permission denied\n"}},
		"not found tty": {Command{Argv: []string{"nothing"}, TTY: true}, ended{127, "nothing: not found\r\n", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			must.EqOp(t, test.want, m.do(t, test.command))
		})
	}
	long := strings.Repeat("x", 100_000)
	e := m.do(t, Command{Argv: []string{"/bin/" + long}})
	must.EqOp(t, 126, e.code) // the file name is too long
	for name, command := range map[string]Command{
		"long user":      {Argv: []string{"true"}, User: long},
		"no command":     {},
		"bad directory":  {Argv: []string{"true"}, Dir: "/missing"},
		"null character": {Argv: []string{"true", "a\x00b"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), m.target, command)
			must.Error(t, err)
			t.Logf("%.200s", err)
		})
	}
}

func TestHostWrongLeader(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2})
	true := Command{Argv: []string{"true"}}
	for name, target := range map[string]Target{
		"no leader":     {Leader: os.Getpid(), Cgroup: m.target.Cgroup, Delegated: m.target.Delegated},
		"other cgroup":  {Leader: m.target.Leader, Cgroup: filepath.Dir(m.target.Cgroup), Delegated: m.target.Delegated},
		"no process":    {Leader: 1 << 22, Cgroup: m.target.Cgroup, Delegated: m.target.Delegated},
		"no such group": {Leader: m.target.Leader, Cgroup: m.target.Cgroup + "/none", Delegated: m.target.Delegated},
		"no delegated":  {Leader: m.target.Leader, Cgroup: m.target.Cgroup, Delegated: m.target.Cgroup + "/none"},
	} {
		_, err := Run(t.Context(), target, true)
		must.Error(t, err, must.Sprint(name))
		t.Log(err)
	}
	m.stop()
	_, err := Run(t.Context(), m.target, true)
	must.Error(t, err)
}

// TestHostHostileFiles lets the container's root prepare traps for the shim.
func TestHostHostileFiles(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	m.sh(t, "mv /etc/passwd /etc/keep; mkfifo /etc/passwd")
	_, err := Run(t.Context(), m.target, Command{User: "app", Argv: []string{"true"}})
	must.ErrorContains(t, err, "not a regular file")

	// Numbers need no entry, but a file that exists must be valid.
	_, err = Run(t.Context(), m.target, Command{Argv: []string{"true"}})
	must.ErrorContains(t, err, "not a regular file")
	run(t, "rm", filepath.Join(m.root, "etc/passwd"))
	must.EqOp(t, ended{}, m.do(t, Command{Argv: []string{"true"}}))

	m.sh(t, "touch /tmp/trap; mount --bind /tmp/trap /dev/pts/ptmx")
	_, err = Run(t.Context(), m.target, Command{TTY: true, Argv: []string{"true"}})
	must.ErrorContains(t, err, "/dev/pts/ptmx")
	m.sh(t, "mount -t tmpfs none /dev/pts; mkfifo /dev/pts/ptmx")
	_, err = Run(t.Context(), m.target, Command{TTY: true, Argv: []string{"true"}})
	must.ErrorContains(t, err, "/dev/pts is not a devpts")

	// CVE-2019-5736: the interpreter would be the shim.
	m.sh(t, "printf '#!/proc/self/exe\\n' >/tmp/evil; chmod 755 /tmp/evil")
	e := m.do(t, Command{Argv: []string{"/tmp/evil"}})
	must.NotEq(t, 0, e.code)
	t.Log(e)
}

// TestHostExecutable checks the only file of the host that the container can reach, by
// /proc/PID/exe.
func TestHostExecutable(t *testing.T) {
	hosttest.Require(t)
	file, err := protectedExecutable()
	must.NoError(t, err)
	defer file.Close()
	var fs unix.Statfs_t
	must.NoError(t, unix.Fstatfs(int(file.Fd()), &fs))
	must.EqOp(t, unix.ST_RDONLY|unix.ST_NOSUID|unix.ST_NODEV, fs.Flags&(unix.ST_RDONLY|unix.ST_NOSUID|unix.ST_NODEV))
	self, err := os.Stat("/proc/self/exe")
	must.NoError(t, err)
	info, err := file.Stat()
	must.NoError(t, err)
	must.True(t, os.SameFile(self, info))
}
