//go:build e2e

package e2e

import (
	"strings"

	"github.com/shoenig/test/must"
)

// refusedTests are jobs that cannot be run as asked. Each gets one message that says what
// is wrong, and leaves nothing.
var refusedTests = []test{
	{"refused jobs", testRefused},
	{"refused kill_signal", testRefusedKillSignal},
	{"refused port of the host", testRefusedPort},
}

func testRefused(l *lab) {
	const command = "command = \"/bin/true\"\nnetwork_veth = false\n"
	l.onHost("mkdir", "--parents", "/var/lib/machines/empty/etc", "/var/lib/machines/no-os/usr", "/srv/elsewhere/usr")
	l.atEnd("rm", "--recursive", "/var/lib/machines/empty", "/var/lib/machines/no-os", "/srv/elsewhere")
	for name, c := range map[string]struct {
		config string
		group  string
		want   []string
	}{
		"unknown option":      {config: "image = \"busybox\"\nzzz = 1\n" + command, want: []string{"zzz"}},
		"wrong type":          {config: "image = \"busybox\"\nread_only = \"perhaps\"\n" + command, want: []string{"read_only", "bool"}},
		"no image":            {config: command, want: []string{"image"}},
		"unknown image":       {config: "image = \"missing\"\n" + command, want: []string{`machined knows no image "missing"`, "machinectl list-images"}},
		"image without /usr":  {config: "image = \"empty\"\n" + command, want: []string{"/var/lib/machines/empty has no /usr"}},
		"boot of no system":   {config: "image = \"no-os\"", want: []string{"/var/lib/machines/no-os has no os-release file"}},
		"relative image":      {config: "image = \"./b\"\n" + command, want: []string{`find ./b on this client`}},
		"image elsewhere":     {config: "image = \"/srv/elsewhere\"\n" + command, want: []string{`"/srv/elsewhere" is not below a directory that the operator allows`, "image_paths"}},
		"image by dots":       {config: "image = \"/var/lib/machines/../../../srv/elsewhere\"\n" + command, want: []string{"image_paths"}},
		"unknown port":        {config: "image = \"debian\"\nports = [\"web\"]", group: "network {\nport \"http\" {}\n}", want: []string{`port "web" is not in the group's network block`, "http"}},
		"port of Nomad":       {config: "image = \"busybox\"\ncommand = \"/bin/true\"\nports = [\"x\"]", group: "network {\nport \"x\" {\nstatic = 4646\n}\n}", want: []string{"4646 is a port of Nomad itself"}},
		"host's root":         {config: "image = \"busybox\"\nuser_namespacing = false\n" + command, want: []string{"allow_privileged"}},
		"bind of the host":    {config: "image = \"busybox\"\nbind = { \"/etc\" = \"/mnt\" }\n" + command, want: []string{"volumes = true"}},
		"bind of what is not": {config: "image = \"busybox\"\nbind = { \"local/none\" = \"/mnt\" }\n" + command, want: []string{"local/none"}},
		"several mistakes":    {config: "image = \"busybox\"\nhostname = \"-\"\nlink_journal = \"maybe\"\nworking_directory = \"here\"\n" + command, want: []string{"hostname", "link_journal", "working_directory"}},
		"command for an init": {config: "image = \"debian\"\nboot = true\ncommand = \"/bin/true\"", want: []string{"boot = false"}},
		"veth in a bridge":    {config: "image = \"busybox\"\ncommand = \"/bin/true\"\nnetwork_veth = true", group: "network {\nmode = \"bridge\"\n}", want: []string{"network_veth"}},
		"impossible variable": {config: "image = \"busybox\"\nenvironment = { \"A=B\" = \"1\" }\n" + command, want: []string{`"A=B"`}},
	} {
		l.parallel(name, func(l *lab) {
			al := l.start(job{group: c.group, tasks: []task{{config: c.config}}})
			message := l.refusal(al)
			for _, want := range c.want {
				must.StrContains(l, message, want)
			}
			must.Less(l, 900, len(message), must.Sprint(message))
			l.gone(al)
			must.StrNotContains(l, strings.ToLower(message), "panic")
		})
	}
}

// Nomad itself refuses most unknown signals, but it accepts this one. The driver gets it
// only when the task is to be stopped: it refuses once, says why, and ends the task when
// Nomad asks again.
func testRefusedKillSignal(l *lab) {
	al := l.ready(task{script: loop, more: "kill_signal = \"SIGNULL\"\nkill_timeout = \"2s\""})
	_, err := al.Stop(l.ctx)
	must.NoError(l, err)
	l.gone(al)
}

// A forwarded port would take the connections of a program that listens on the host. Nomad
// does not check this: it knows only the ports that it has given to jobs.
func testRefusedPort(l *lab) {
	l.ready(task{script: "httpd -p 18081\n" + loop}) // on the host's network
	al := l.start(job{
		group: "network {\nport \"x\" {\nstatic = 18081\n}\n}",
		tasks: []task{{config: "image = \"busybox\"\ncommand = \"/bin/true\"\nports = [\"x\"]"}},
	})
	must.StrContains(l, l.refusal(al), "reserve port 18081 of the host: another program uses it for TCP")
	l.gone(al)
}
