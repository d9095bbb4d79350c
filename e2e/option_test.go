//go:build e2e

package e2e

import (
	"strconv"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

// optionTests test options of limits and isolation that need no cgroup controller. The
// others are tested in the virtual machine.
var optionTests = []test{
	{"options", testOptions},
	{"options without controllers", testOptionsWithoutControllers},
	{"sysctls of a group", testGroupSysctls},
}

func testOptions(l *lab) {
	for name, c := range map[string]struct{ config, script, want, more string }{
		"ulimit":        {config: `ulimit = { nofile = "1000:2000", RLIMIT_CORE = "0" }`, script: "ulimit -Sn; ulimit -Hn; ulimit -c", want: "1000\n2000\n0\n"},
		"ulimit block":  {config: "ulimit {\nnofile = \"4096\"\n}", script: "ulimit -n", want: "4096\n"},
		"oom_score_adj": {config: "oom_score_adj = 700", script: "cat /proc/self/oom_score_adj", want: "700\n"},
		"sysctl": {
			config: "network_veth = true\nsysctl = { \"net.ipv4.tcp_keepalive_time\" = \"777\", \"kernel.msgmax\" = \"9000\" }",
			script: "cd /proc/sys; cat net/ipv4/tcp_keepalive_time kernel/msgmax", want: "777\n9000\n",
		},
		"sysctl list": {
			config: "process_two = false\nnetwork_veth = true\nsysctl = [{ \"net.ipv4.ip_forward\" = \"1\", \"fs.mqueue.msg_max\" = \"20\" }]",
			script: "cd /proc/sys; cat net/ipv4/ip_forward fs/mqueue/msg_max", want: "1\n20\n",
		},
		"cap_drop":           {config: `cap_drop = ["mknod", "CAP_NET_RAW"]`, script: capability(27) + capability(13) + capability(0), want: "no\nno\nyes\n"},
		"cap_add":            {config: `cap_add = ["sys_time"]`, script: capability(25), want: "yes\n"},
		"cap_drop all":       {config: `cap_drop = ["all"]`, script: "grep CapEff /proc/self/status", want: "CapEff:\t0000000000000000\n"},
		"no_new_privileges":  {config: "no_new_privileges = true", script: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1\n"},
		"privileges":         {script: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t0\n"},
		"system_call_filter": {config: `system_call_filter = ["~mkdir", "~mkdirat"]`, script: "mkdir /x 2>/dev/null || echo forbidden", want: "forbidden\n"},
		"shm_size":           {config: "shm_size = 4194304", script: "df -k /dev/shm | awk 'END { print $2 }'; stat -c %a /dev/shm", want: "4096\n1777\n"},
		"tmpfs":              {config: `tmpfs = ["/data:size=8M", "/private:mode=0700"]`, script: "stat -c %u:%a /data /private", want: "0:1777\n0:700\n"},
		"tmpfs of a user":    {config: `tmpfs = ["/data"]` + "\nuser = \"1000\"", script: "echo x >/data/file && cat /data/file", want: "x\n"},
		"tmp":                {script: "stat -c %a /tmp; grep -c ' /tmp ' /proc/mounts; echo x >/tmp/file && cat /tmp/file", want: "1777\n0\nx\n"},
		"tmp of a user":      {config: "user = \"1000\"", script: "echo x >/tmp/file && cat /tmp/file", want: "x\n"},
		"set_credential":     {config: `set_credential = { "token" = "of the job" }`, script: `cat "$CREDENTIALS_DIRECTORY/token"`, want: "of the job"},
		"load_credential": {
			config: `load_credential = { "db.password" = "secrets/password" }`, script: `cat "$CREDENTIALS_DIRECTORY/db.password"`, want: "of the template\n",
			more: "template {\ndestination = \"secrets/password\"\ndata = \"of the template\\n\"\n}",
		},
		"work_dir":        {config: "work_dir = \"/usr\"", script: "pwd", want: "/usr\n"},
		"readonly_rootfs": {config: "readonly_rootfs = true", script: "touch /usr/x 2>/dev/null || echo read-only", want: "read-only\n"},
		"init":            {config: "init = false", script: "echo $$", want: "1\n"},
		"volumes":         {config: `volumes = ["local/:/mnt:ro"]`, script: "touch /mnt/x 2>/dev/null || echo read-only; touch /local/x && ls /mnt", want: "read-only\nx\n"},
		"mount": {
			config: "mount {\ntype = \"bind\"\nsource = \"local\"\ntarget = \"/mnt\"\n}\nmount {\ntype = \"tmpfs\"\ntarget = \"/cache\"\ntmpfs_options {\nsize = 1048576\nmode = 448\n}\n}",
			script: "touch /mnt/x && ls /local; stat -c %a /cache; df -k /cache | awk 'END { print $2 }'", want: "x\n700\n1024\n",
		},
	} {
		l.parallel(name, func(l *lab) {
			must.Eq(l, agent.Output{Stdout: c.want}, l.finish(task{config: c.config, script: c.script, more: c.more}))
		})
	}
}

// capability returns a script that prints whether its shell has a capability in its
// bounding set.
func capability(number int) string {
	return "bits=$(awk '/CapBnd/ { print $2 }' /proc/self/status); [ $((0x$bits >> " + strconv.Itoa(number) + " & 1)) = 1 ] && echo yes || echo no\n"
}

// The hosts of these tests have no controllers.
func testOptionsWithoutControllers(l *lab) {
	for option, config := range map[string]string{
		"cpu_hard_limit":    "cpu_hard_limit = true",
		"memory_swap":       "memory_swap = \"1GB\"",
		"pids_limit":        "pids_limit = 100",
		"io_weight":         "io_weight = 100",
		"io_read_bandwidth": "io_read_bandwidth = { \"/dev/vda\" = \"1MB\" }",
	} {
		l.parallel(option, func(l *lab) {
			al := l.start(job{tasks: []task{{config: config, script: "true"}}})
			must.StrContains(l, l.refusal(al), option+": cannot be enforced on this client")
			l.gone(al)
		})
	}
}

// testGroupSysctls has one task of a group set parameters: those of the network are for all
// of its tasks, those of IPC for itself.
func testGroupSysctls(l *lab) {
	const read = "cd /proc/sys; cat net/core/somaxconn net/ipv4/ip_unprivileged_port_start kernel/msgmax"
	out := l.finishIn(job{
		group: "network {\nmode = \"bridge\"\n}",
		tasks: []task{
			{script: read},
			{
				name: "sidecar", more: "lifecycle {\nhook = \"prestart\"\nsidecar = true\n}",
				config: "image = \"busybox\"\ncommand = \"/bin/sleep\"\nargs = [\"1000\"]\n" +
					"sysctl = { \"net.core.somaxconn\" = \"777\", \"net.ipv4.ip_unprivileged_port_start\" = \"1024\", \"kernel.msgmax\" = \"9000\" }",
			},
		},
	})
	must.Eq(l, agent.Output{Stdout: "777\n1024\n" + l.onHost("cat", "/proc/sys/kernel/msgmax")}, out)
}
