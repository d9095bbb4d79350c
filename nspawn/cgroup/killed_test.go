package cgroup

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestKilledBy(t *testing.T) {
	const (
		before = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=payload,mems_allowed=0,oom_memcg=/nomad.slice/web.service"
		after  = ",pid=4711,uid=142802944\n SUBSYSTEM=memory\n"
	)
	for record, want := range map[string]string{
		"6,812,4521,-;" + before + ",task_memcg=/nomad.slice/web.service/payload,task=dd" + after:    "dd",
		"6,812,4521,-;" + before + ",task_memcg=/nomad.slice/web.service,task=a,pid=1" + after:       "a,pid=1",
		"6,812,4521,-;" + before + ",task_memcg=/nomad.slice/web.service2/payload,task=dd" + after:   "",
		"6,812,4521,-;" + before + ",task_memcg=/nomad.slice/my-web.service,task=dd" + after:         "",
		"12,812,4521,-;" + before + ",task_memcg=/nomad.slice/web.service/payload,task=dd" + after:   "",
		"6,812,4521,-;eth0: oom-kill:,task_memcg=/nomad.slice/web.service/payload,task=dd" + after:   "",
		"6,812,4521,-;" + before + ",task_memcg=/nomad.slice/web.service/payload,task=cut":           "",
		"6,812,4521,-;Out of memory: Killed process 4711 (dd) total-vm:160180kB, anon-rss:65536kB\n": "",
		"": "",
	} {
		got, ok := killedBy(record, "web.service")
		must.Eq(t, want, got, must.Sprint(record))
		must.Eq(t, want != "", ok, must.Sprint(record))
	}
}
