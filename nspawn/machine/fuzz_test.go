package machine

import "testing"

// FuzzParseSignal has what a job and a user say: kill_signal, change_signal, alloc signal.
func FuzzParseSignal(f *testing.F) {
	for _, name := range []string{"SIGTERM", "hup", "9", "SIGRTMIN+3", "RTMAX-1", "RTMIN+", "RTMIN-1", "-1", "SIGSIGTERM", "99999999999999999999"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if sig, err := ParseSignal(name); err == nil && (sig < 1 || sig > sigRTMax) {
			t.Errorf("%q is signal %d", name, sig)
		}
	})
}

// FuzzParseCPUs has lists of cores: the mask on the bus has one bit for each.
func FuzzParseCPUs(f *testing.F) {
	for _, list := range []string{"0", "0,2-3", "8191", "3-2", "-1", "0-8192", ",", " 1 , 2"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		cpus, err := ParseCPUs(list[:min(len(list), 64)])
		if err != nil {
			return
		}
		mask := cpuMask(cpus)
		for _, cpu := range cpus {
			if cpu < 0 || cpu > maxCPU || mask[cpu/8]&(1<<(cpu%8)) == 0 {
				t.Errorf("%q: core %d", list, cpu)
			}
		}
	})
}
