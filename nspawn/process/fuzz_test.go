package process

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzName has processes with any name: none makes other facts of itself.
func FuzzName(f *testing.F) {
	f.Add("sh", 7, 2)
	f.Add("a) R 1 2 3", 1, 1)
	f.Add("\nPPid:\t1\nNSpid:", 0, 0)
	f.Add("PPid:\t1", 8, 3)
	f.Fuzz(func(t *testing.T, name string, parent, inside int) {
		name = name[:min(len(name), 15)] // TASK_COMM_LEN
		name, _, _ = strings.Cut(name, "\x00")
		escaped := strings.NewReplacer("\n", `\n`, `\`, `\\`).Replace(name) // task_state in fs/proc/array.c
		status := fmt.Sprintf("Name:\t%s\nUmask:\t0022\nState:\tR (running)\nTgid:\t9\nNgid:\t0\nPid:\t9\nPPid:\t%d\nTracerPid:\t0\nNSpid:\t9\t%d\n", escaped, parent, inside)
		p, err := parseStatus(9, []byte(status))
		if err != nil || p != (Process{PID: 9, Parent: parent, Inside: inside}) {
			t.Errorf("%q: %+v, %v", status, p, err)
		}
		stat := fmt.Sprintf("9 (%s) R %d%s 4711 0 0", name, parent, strings.Repeat(" 1", 17)) // do_task_stat has the name as it is
		if started, ok := startTime([]byte(stat)); !ok || started != "4711" {
			t.Errorf("%q: started at %q", stat, started)
		}
	})
}

// FuzzStatus reads anything.
func FuzzStatus(f *testing.F) {
	f.Add([]byte("PPid:\t1\nNSpid:\t9\t1\n"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = parseStatus(1, text)
		_, _ = startTime(text)
	})
}
