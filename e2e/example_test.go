//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/agent"
)

// exampleTests run the folders of example/ and check what their comments promise.
var exampleTests = []test{
	{"example batch", testExampleBatch},
	{"example boot", testExampleBoot},
	{"example bridge", testExampleBridge},
}

func (l *lab) example(name string) *agent.Alloc {
	l.Helper()
	text, err := os.ReadFile("../example/" + name + "/job.nomad.hcl")
	must.NoError(l, err)
	return l.startHCL(string(text))[0]
}

func testExampleBatch(l *lab) {
	al := l.example("batch")
	now := l.ended(al)
	must.Eq(l, "complete", now.ClientStatus)
	stdout, err := al.Log(l.ctx, "hello", agent.Stdout, "gid=0(root)")
	must.NoError(l, err)
	must.StrContains(l, stdout, "hello from hello\nuid=0(root) gid=0(root)")
	must.StrNotContains(l, stdout, "done")
	stderr, err := al.Log(l.ctx, "hello", agent.Stderr, "done")
	must.NoError(l, err)
	must.Eq(l, "done\n", stderr)
}

func testExampleBoot(l *lab) {
	al := l.example("boot")
	must.NoError(l, al.Running(l.ctx))
	must.NoError(l, al.Healthy(l.ctx))
	must.StrContains(l, l.get(8080), "Welcome to nginx")
}

func testExampleBridge(l *lab) {
	al := l.example("bridge")
	must.NoError(l, al.Healthy(l.ctx))
	must.Eq(l, "allocation "+al.ID+"\n", l.get(8081))

	out, err := al.Exec(l.ctx, "httpd", "", "cat", "/shared/README")
	must.NoError(l, err)
	must.StrContains(l, out.Stdout, "volume")
	out, err = al.Exec(l.ctx, "httpd", "", "touch", "/shared/new")
	must.NoError(l, err)
	must.StrContains(l, out.Stderr, "Read-only file system")
	must.One(l, out.Code)

	out, err = al.Exec(l.ctx, "httpd", "", "cat", "/proc/1/uid_map")
	must.NoError(l, err)
	fields := strings.Fields(out.Stdout)
	must.SliceLen(l, 3, fields)
	must.NotEq(l, "0", fields[1], must.Sprint("root of the task is root of the host"))
	must.Eq(l, "65536", fields[2])

	services, _, err := l.agent.API.Services().Get("web", nil)
	must.NoError(l, err)
	must.Eq(l, 8081, services[0].Port)
}

// get sends a request to a port of the host from this machine, which is outside of the
// host. It repeats the request, because a task runs before its server listens and before
// the port is forwarded.
func (l *lab) get(port int) string {
	l.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for {
		request, err := http.NewRequestWithContext(l.ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/", l.agent.Host.Addr(), port), nil)
		must.NoError(l, err)
		response, err := client.Do(request)
		if err == nil {
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			must.NoError(l, err)
			must.Eq(l, http.StatusOK, response.StatusCode, must.Sprint(string(text)))
			return string(text)
		}
		var network net.Error
		timeout := errors.As(err, &network) && network.Timeout()
		must.True(l, timeout || errors.Is(err, unix.ECONNREFUSED), must.Sprint(err))
		select {
		case <-time.After(100 * time.Millisecond):
		case <-l.ctx.Done():
			l.Fatalf("port %d does not answer: %v", port, err)
		}
	}
}
