//go:build e2e

package e2e

import (
	"strings"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var deviceTests = []test{
	{"devices", testDevices},
	{"devices of a plugin", testPluginDevices},
}

func testDevices(l *lab) {
	l.onHost("mknod", "--mode=0666", "/dev/e2e-zero", "c", "1", "5")
	l.atEnd("rm", "/dev/e2e-zero")
	out := l.finish(task{
		config: "devices = [{ host_path = \"/dev/e2e-zero\" }, { host_path = \"/dev/e2e-zero\", container_path = \"/dev/other\", cgroup_permissions = \"r\" }]",
		script: "head -c 3 /dev/e2e-zero | wc -c; head -c 3 /dev/other | wc -c; ls -1 /dev | grep -c e2e",
	})
	must.Eq(l, agent.Output{Stdout: "3\n3\n1\n"}, out)
}

// The plugin e2e-device has two groups of devices.
const (
	readDevice  = "device \"e2e/node/read\" {}\n"
	writeDevice = "device \"e2e/node/write\" {}\n"
)

// testPluginDevices runs tasks that ask Nomad for devices. The nodes are of devices that no
// container has without that, and opening them does nothing.
func testPluginDevices(l *lab) {
	l.onHost("sh", "-ec", `
		for n in 1 2 3 4; do
			mknod --mode=0640 /dev/e2e-plugin-read$n c 10 235 # autofs
			chown 0:1000 /dev/e2e-plugin-read$n
			mknod --mode=0666 /dev/e2e-plugin-write$n c 10 237 # loop-control
			chmod 0666 /dev/e2e-plugin-write$n
		done
		mknod --mode=0644 /dev/e2e-plugin-control c 1 5
		cd /var/tmp
		mkdir -p e2e-plugin/library
		echo code >e2e-plugin/library/code
		for id in read1 read2 read3 read4 write1 write2 write3 write4; do
			mkdir e2e-plugin/$id
			echo $id >e2e-plugin/$id/id
		done
		true </dev/e2e-plugin-read1
		true >>/dev/e2e-plugin-read1
		true <>/dev/e2e-plugin-write1`)
	l.atEnd("sh", "-c", "rm /dev/e2e-plugin-* && rm -r /var/tmp/e2e-plugin")

	// The shell would make a file that is not there.
	const open = `try() { [ -c "$2" ] && sh -c "true $1$2" 2>/dev/null && echo yes || echo no; }
		read=$(echo /dev/read?) write=$(echo /dev/write?)
		try "<" "$read"; try "<>" "$read"; try "<" "$write"; try "<>" "$write"; `
	for name, c := range map[string]struct{ script, user, devices, want string }{
		"none":  {open + "ls /opt/e2e 2>/dev/null; env | grep E2E_ || echo unset", "", "", "no\nno\nno\nno\nunset\n"},
		"read":  {open, "", readDevice, "yes\nno\nno\nno\n"},
		"write": {open, "", writeDevice, "no\nno\nyes\nyes\n"},
		"both":  {open, "", readDevice + writeDevice, "yes\nno\nyes\nyes\n"},
		"group": {open, "1000:1000", readDevice + writeDevice, "yes\nno\nyes\nyes\n"},
		"user":  {open, "1001:1001", readDevice + writeDevice, "no\nno\nyes\nyes\n"},
		"nodes": {"stat -c %u:%g:%a:%t:%T /dev/read? /dev/write? /dev/e2e/control", "", readDevice + writeDevice, "0:1000:640:a:eb\n0:0:666:a:ed\n0:0:644:1:5\n"},
		"mounts": {
			`cd /opt/e2e; cat library/code; touch library/x 2>/dev/null || echo read-only; id=$(cat read?/id); echo x >$id/made; stat -c %u $id/made
			[ "$id" = "$E2E_DEVICES" ] && [ -e /dev/$id ] && echo matches`,
			"", readDevice, "code\nread-only\n0\nmatches\n",
		},
		"two": {"ls /dev | grep -c ^read; echo $E2E_DEVICES | tr , '\\n' | wc -l", "", strings.Replace(readDevice, "{}", "{\ncount = 2\n}", 1), "2\n2\n"},
	} {
		l.sub(name, func(l *lab) {
			t := task{script: c.script, device: c.devices}
			if c.user != "" {
				t.more = "user = \"" + c.user + "\""
			}
			must.Eq(l, agent.Output{Stdout: c.want}, l.finish(t))
		})
	}
	must.Eq(l, "0\n", l.onHost("sh", "-c", "stat --format=%u /var/tmp/e2e-plugin/read?/made"))
	l.sub("booted", testPluginDevicesBooted)
}

func testPluginDevicesBooted(l *lab) {
	al := l.running(task{config: "image = \"debian\"\nnetwork_veth = false", device: readDevice, more: "kill_timeout = \"" + patience + `"`})
	l.awaitReady(al, 1)
	look := func() string {
		return l.exec(al, "sh", "-c", `stat -c %u:%g:%a /dev/read?; node=$(echo /dev/read?); true <$node && echo reads; (true <>$node) 2>/dev/null || echo "does not write"; `+
			`cat /opt/e2e/library/code; [ "$(cat /opt/e2e/read?/id)" = "$E2E_DEVICES" ] && echo matches`)
	}
	const want = "0:1000:640\nreads\ndoes not write\ncode\nmatches\n"
	must.Eq(l, want, look())
	_, _ = al.Exec(l.ctx, "main", "", "systemctl", "reboot")
	l.awaitReady(al, 2)
	must.Eq(l, want, look())
}
