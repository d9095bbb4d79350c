package nspawn

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

func TestHostMounts(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		root   machine.Root
		script string
	}{
		"tmpfs":             {machine.Root{Tmpfs: []machine.Tmpfs{{Destination: "/mine", Options: []string{"size=1M"}}, {Destination: "/etc"}}}, `grep " /mine tmpfs .*size=1024k" /proc/mounts && echo x >/mine/x && ! ls /etc/passwd`},
		"tmpfs, odd path":   {machine.Root{Tmpfs: []machine.Tmpfs{{Destination: `/a:b\c`, Options: []string{"size=1M"}}}}, `grep 'a:b.*c tmpfs .*size=1024k' /proc/mounts && echo x >'/a:b\c/x'`},
		"inaccessible":      {machine.Root{Inaccessible: []string{"/etc"}}, "! ls /etc/passwd"},
		"inaccessible, odd": {machine.Root{Directories: []string{`/a:b\c`}, Inaccessible: []string{`/a:b\c`}}, `test -e '/a:b\c' && ! ls '/a:b\c/'`},
		"volatile state":    {machine.Root{Volatile: "state"}, "! touch /x && touch /var/x && ls /etc/passwd"},
		"volatile yes":      {machine.Root{Volatile: "yes"}, "touch /x && ! touch /usr/x && ! ls /etc/shadow"},
		"volatile overlay":  {machine.Root{Volatile: "overlay"}, "touch /x /usr/x"},
		"volatile, read it": {machine.Root{Volatile: "no", ReadOnly: true}, "! touch /x"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, c.script)
			c.root.Image, c.root.UserNamespace = spec.Root.Image, true
			spec.Root = c.root
			out := mustStart(t, m, spec)
			exit := mustWait(t, m, spec.Machine)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, Exit{}, exit, must.Sprint(<-out.stdout, <-out.stderr))
		})
	}
}
