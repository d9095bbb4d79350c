//go:build e2e

package e2e

import (
	"fmt"
	"strings"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var reportTests = []test{
	{"reports: root", reportsOfRoot.run},
	{"reports: a user", reportsOfUser.run},
	{"reports: a distribution", reportsOfDebian.run},
	{"reports: an image with everything in the way", reportsOfImage.run},
	{"reports: etc is a link", reportsOfLink.run},
	{"reports: hosts of the job", reportsOfHosts.run},
	{"reports: starts", testReportedStarts},
	{"reports: exec", testReportedExecs},
}

// report is what a user of docker, podman, lxc, containerd or systemd-nspawn has told in
// public of a container, and a script that shows the same here.
type report struct {
	from   string // repository and number
	did    string // what the user did, and what was wrong
	script string
	want   string // what is right: what the script writes, to either stream
}

// reports share one task. Each script has a shell of its own.
type reports struct {
	image string // made of busybox by a script, if there is one
	make  string
	task  task
	list  []report
}

func (r reports) run(l *lab) {
	if r.make != "" {
		l.imageWith(r.image, r.make)
	}
	var script strings.Builder
	for n, report := range r.list {
		fmt.Fprintf(&script, "echo '=== %d'\n( %s\n) 2>&1\n", n, report.script)
	}
	t := r.task
	t.config += "\n" + attempt(r.image, script.String()+"echo '"+end+"'")
	al := l.start(job{tasks: []task{t}})
	must.Zero(l, l.exitCode(l.ended(al)))
	text := l.waitLog(al, agent.Stdout, end)
	for n, report := range r.list {
		l.sub(report.from+" "+report.did, func(l *lab) {
			_, got, found := strings.Cut(text, fmt.Sprintf("=== %d\n", n))
			must.True(l, found)
			got, _, _ = strings.Cut(got, fmt.Sprintf("=== %d\n", n+1))
			must.Eq(l, report.want, strings.TrimSuffix(got, end+"\n"))
		})
	}
}

var reportsOfRoot = reports{
	image: "busybox",
	task:  task{config: "network_veth = true\nhostname = \"box\"\nextra_hosts = [" + manyHosts() + "]", more: "env {\nBIG = \"" + strings.Repeat("x", 100_000) + "\"\n}"},
	list: []report{
		{
			"moby/moby#31243", "a server that has given root away opens /dev/stdout: permission denied",
			`su app -c "echo out >/dev/stdout"`, "out\n",
		},
		{"docker/for-linux#1374, moby/moby#37616", "binds to ::1, which /etc/hosts calls localhost: no such address", `grep -q '^::1.*localhost' /etc/hosts; httpd -p '[::1]:8081' && wget -qO- 'http://[::1]:8081/etc/passwd' >/dev/null; echo $?`, "0\n"},
		{
			"containerd/containerd#9979, moby/moby#29238, apple/container#1225", "orphans that end stay as zombies below PID 1",
			`for i in 1 2 3; do sh -c 'sleep 0.1 &'; done; for i in $(seq 50); do left=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null); [ -z "$left" ] && break; sleep 0.1; done; sleep 0.3; cat /proc/[0-9]*/status 2>/dev/null | grep -c '^State:.Z'`, "0\n",
		},
		{"docker-library/postgres#416", "takes more than 64 MB of shared memory than a container has by default: no space", `[ $(df -k /dev/shm | awk 'END { print $2 }') -ge 65536 ] && stat -c %a /dev/shm`, "1777\n"},
		{"systemd/systemd#3052", "what is in /proc belongs to nobody in a user namespace", `stat -c %u /proc/1 /proc/self/net /proc/net/dev`, "0\n0\n0\n"},
		{"systemd/systemd#40501", "the kernel's memory and symbols are there for the container to read", `head -c 1 /proc/kcore >/dev/null 2>&1 || echo closed; grep -v '^0000000000000000' /proc/kallsyms 2>/dev/null | head -n 1`, "closed\n"},
		{"moby/moby#38814", "programs that close all files take minutes: a billion files are allowed", `[ $(ulimit -Sn) -le 1048576 ] && echo bounded`, "bounded\n"},
		{"lensesio/lenses-docker#26", "has a large file in a variable: argument list too long", `printf %s "$BIG" | wc -c`, "100000\n"},
		{"podman-container-tools/podman#25396", "more than some dozens of extra hosts: no start", `grep -c '^192.0.2.[0-9]* node' /etc/hosts`, "100\n"},
		{"moby/moby#8834", "message queues have no /dev/mqueue", `grep -c ' /dev/mqueue mqueue' /proc/mounts`, "1\n"},
		{"moby/moby#5655", "/run cannot be written to", `touch /run/app.pid && stat -c %a /run`, "755\n"},
	},
}

func manyHosts() string {
	var hosts []string
	for n := range 100 {
		hosts = append(hosts, fmt.Sprintf("\"node%d:192.0.2.%d\"", n, n))
	}
	return strings.Join(hosts, ", ")
}

var reportsOfUser = reports{
	image: "busybox",
	task:  task{config: "network_veth = false", more: `user = "4321"`},
	list: []report{
		{"rustdesk/rustdesk-server#612", "a user without an entry in passwd has no HOME", `echo $HOME`, "/\n"},
		{"lxc/lxc#3344", "logs to /dev/stdout: permission denied", `echo out >/dev/stdout; echo err >/dev/stderr; echo one >/proc/self/fd/1`, "out\nerr\none\n"},
		{"docker/for-mac#5569", "sends output to /dev/null: permission denied", `echo x >/dev/null && echo x >/dev/zero && head -c 1 /dev/urandom | wc -c; echo x >/dev/full || echo full`, "1\nsh: write error: No space left on device\nfull\n"},
	},
}

var reportsOfDebian = reports{
	image: "debian",
	task:  task{config: "boot = false\nnetwork_veth = false"},
	list: []report{
		{"TencentCloud/CubeSandbox#1267", "substitutes processes in bash: /dev/fd/63 is not there", `bash -c 'cat <(echo one); echo two | cat /dev/stdin; exec 3</etc/os-release; head -c 1 /dev/fd/3 | wc -c'`, "one\ntwo\n1\n"},
		{"podman-container-tools/podman#6659", "reads a here document by /dev/stdin: no such file", "bash -c 'cat /dev/stdin <<<text'", "text\n"},
		{"moby/moby#42680", "a new C library cannot make threads: clone3 is not permitted", systemCall(`435, $clone, 88`), "fine\n"},
		{"containers/crun#546", "openat2 is not permitted, which is not \"unknown\"", systemCall(`437, -100, $path, $zeros, 24`), "fine\n"},
		{"systemd/systemd#30250", "fchmodat2 is not permitted: tar cannot set modes", systemCall(`452, -100, $path, 01777, 0`), "fine\n"},
		{"podman-container-tools/podman#13123", "apt cannot replace a package's files: invalid cross-device link", `cp -a /var/lib/dpkg/info/dpkg.list /tmp/l && mv /tmp/l /var/lib/dpkg/info/dpkg.list && ln /var/lib/dpkg/status /var/lib/dpkg/status.link && dpkg --audit; echo $?`, "0\n"},
		{"docker/for-linux#1100", "sudo of a user: effective uid is not 0", "cp /usr/bin/id /usr/local/bin/su-id && chmod 4755 /usr/local/bin/su-id && " + asUser + "su-id -u", "0\n"},
		{"genuinetools/img#96, pelagos-containers/pelagos#434", "apt cannot become its own user: setgroups is not permitted", asUser + "id -G", "1000\n"},
		{"lopukhov/unbox#5", "apt cannot give its directory to its own user: invalid argument", "mkdir /p && chown _apt:root /p && chown 65534:65534 /p && stat -c %u:%g /p", "65534:65534\n"},
		{"souk4711/hakoniwa#102", "a user gets no terminal of /dev/ptmx: tmux ends at once", asUser + `script -qec tty /dev/null </dev/null | tr -d '\r' | cut -d / -f 1-3`, "/dev/pts\n"},
		{"containers/fuse-overlayfs#110", "postgres cannot make its socket in a directory of the image", socket("/run/lock") + socket("/var/tmp"), "heard\nheard\n"},
		{"moby/moby#25409", "moves a directory of the image: invalid cross-device link", `mv /usr/share/doc /doc && ls /doc | grep -x bash`, "bash\n"},
		{"systemd/systemd#9009", "nspawn gives the host's time zone to the image", `readlink /etc/localtime; date +%Z`, "/usr/share/zoneinfo/Etc/UTC\nUTC\n"},
	},
}

const asUser = "setpriv --reuid=1000 --regid=1000 --clear-groups "

// socket is a script that talks to itself by a socket in a directory.
func socket(dir string) string {
	return `perl -MSocket -e '$at = sockaddr_un(shift . "/s"); socket S, AF_UNIX, SOCK_STREAM, 0; bind S, $at or die "bind: $!"; listen S, 1; ` +
		`socket C, AF_UNIX, SOCK_STREAM, 0; connect C, $at or die "connect: $!"; accept A, S; syswrite C, "heard\n"; print scalar <A>' ` + dir + "\n"
}

// systemCall is a script that wants a system call, of a number that is the same on all
// machines, to work or not to be there. It has a path, an argument of clone3 that makes a
// process, and zeros.
func systemCall(arguments string) string {
	return `perl -e '$parent = $$; $path = "/tmp"; $clone = pack("Q11", 0, 0, 0, 0, 17); $zeros = pack("Q3"); ' -e '$result = syscall(` + arguments + `); ` +
		`exit if $$ != $parent; print $result >= 0 || $!{ENOSYS} ? "fine" : $!, "\n"'`
}

var reportsOfImage = reports{
	image: "reported",
	make: `mkdir -p run/postgresql run/lock && chmod 2775 run/postgresql && chown 1000:1000 run/postgresql && rm -rf dev && mkdir dev && touch dev/null dev/tty && ` +
		`rm -f etc/resolv.conf && ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf && printf 'extra:x:2000:app\n' >>etc/group`,
	task: task{config: "network_veth = true", more: `user = "app"`},
	list: []report{
		{"vmware/vic#1643", "a directory of the image below /run is not there: postgres does not start", `stat -c %a:%u /run/postgresql && touch /run/postgresql/pid && ls /run/postgresql`, "2775:1000\npid\n"},
		{"systemd/systemd#3695", "the image has files in /dev: mknod fails, no start", `echo x >/dev/null; stat -c %F /dev/null; ls /dev/fd >/dev/null && echo fd`, "character special file\nfd\n"},
		{"containers/toolbox#398", "/etc/resolv.conf of the image is a link to nowhere: no names", `grep -q . /etc/resolv.conf && echo there`, "there\n"},
		{"moby/buildkit#412", "the user lacks the groups that /etc/group gives it", `id -G`, "1000 2000\n"},
	},
}

var reportsOfLink = reports{
	image: "reported-link",
	make:  `mv etc usr/conf && ln -s usr/conf etc`,
	task:  task{config: "network_veth = true\nhostname = \"linked\"\nextra_hosts = [\"db:192.0.2.7\"]"},
	list: []report{
		{"moby/moby#42706", "/etc is a link in the image: its files are gone", `head -n 1 /etc/os-release; grep -c db /etc/hosts; test -s /etc/resolv.conf && hostname; echo x >/etc/new && cat /usr/conf/new`, "ID=busybox\n1\nlinked\nx\n"},
	},
}

// reportsOfHosts has what README advises to programs that write to /etc/hosts.
var reportsOfHosts = reports{
	image: "busybox",
	task: task{
		config: "network_veth = true\nbind = { \"local/hosts\" = \"/etc/hosts\" }",
		more:   "template {\ndestination = \"local/hosts\"\ndata = \"127.0.0.1 localhost\\n\"\n}",
	},
	list: []report{
		{"distribution/distribution#2539", "a program adds a name to /etc/hosts: read-only, or without effect", `echo 127.0.0.9 added >>/etc/hosts && ping -c 1 -w 1 added | head -n 1 | cut -d ' ' -f 2,3`, "added (127.0.0.9):\n"},
	},
}

// testReportedStarts has reports of how a command is found and begins, or does not.
func testReportedStarts(l *lab) {
	image := l.imageWith("reported-start", `mkdir app && printf '#!/bin/sh\necho "here $1"\n' >app/run.sh && printf 'echo no interpreter\n' >app/bare.sh && `+
		`printf '#!/bin/sh\r\necho x\r\n' >app/dos.sh && printf '!/bin/sh\necho x\n' >app/wrong.sh && chmod 0755 app/*`)
	for _, c := range []struct{ from, did, config, out, refusal string }{
		{"podman-container-tools/podman#4429", "an entrypoint relative to the working directory: not found in PATH", "work_dir = \"/app\"\ncommand = \"./run.sh\"\nargs = [\"it is\"]", "here it is\n", ""},
		{"opencontainers/runc#1773", "a script without an interpreter: an error that does not say so", `command = "/app/bare.sh"`, "", "/app/bare.sh"},
		{"moby/moby#10738", "a script whose first line lacks its #", `command = "/app/wrong.sh"`, "", "/app/wrong.sh"},
		{"GoteoFoundation/goteo#632, podman-container-tools/podman#22779", "a script with the line ends of Windows: no such file, which is there", `command = "/app/dos.sh"`, "", `/bin/sh\r`},
		{"moby/moby#43860, docker/compose#10658", "the last line has no newline: it is lost", "command = \"printf\"\nargs = [\"one\\ntwo\"]", "one\ntwo", ""},
		{"microsoft/physical-ai-toolchain#1036", "a variable above 128 KiB: argument list too long, of nobody knows what", "command = \"/bin/true\"\nenvironment = { \"BIG\" = \"" + strings.Repeat("x", 1<<17) + "\" }", "", "/bin/true: its arguments and environment are too large"},
	} {
		l.parallel(c.from+" "+c.did, func(l *lab) {
			al := l.start(job{tasks: []task{{config: "network_veth = false\nimage = \"" + image + "\"\n" + c.config}}})
			if c.refusal != "" {
				must.StrContains(l, l.refusal(al), c.refusal)
				return
			}
			must.Zero(l, l.exitCode(l.ended(al)))
			must.Eq(l, c.out, l.waitLog(al, agent.Stdout, c.out))
		})
	}
}

// testReportedExecs has reports of commands that join a container.
func testReportedExecs(l *lab) {
	al := l.ready(task{config: `working_directory = "/srv/app"`, script: loop, more: "user = \"app\"\nenv { COLOR = \"blue\" }"})
	for _, c := range []struct{ from, did, script, want string }{
		{"hyperhq/hyperstart#227", "exec begins elsewhere than the container's command", "pwd", "/srv/app\n"},
		{"moby/moby#32831", "exec lacks the container's environment", "echo $COLOR $HOME $USER $(id -u)", "blue /home/app app 1000\n"},
	} {
		l.sub(c.from+" "+c.did, func(l *lab) { must.Eq(l, c.want, l.exec(al, "sh", "-c", c.script)) })
	}
	l.sub("SyneRBI/SIRF-SuperBuild#544 the working directory is gone, and exec does not say so", func(l *lab) {
		l.exec(al, "sh", "-c", "cd / && rmdir /srv/app")
		_, err := al.Exec(l.ctx, "main", "", "true")
		must.ErrorContains(l, err, "change to directory /srv/app: no such file or directory")
	})
}
