package oci

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/shoenig/test/must"
	"golang.org/x/crypto/bcrypt"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestRealRegistry uses the registry of the CNCF, packaged by Debian.
func TestRealRegistry(t *testing.T) {
	host, ca := startRegistry(t, "me", "hunter2")
	image := newImage(t, "linux/amd64", newLayer(t, "one"), newZstdLayer(t, "two"))
	index := newIndex(t, map[string]v1.Image{"linux/amd64": image, "linux/arm64": newImage(t, "linux/arm64")})
	pushToRegistry(t, host+"/team/app:1", ca, index)
	digest, err := index.Digest()
	must.NoError(t, err)

	c := Client{Platform: "linux/amd64", CAFile: ca}
	me := &Auth{"me", "hunter2"}
	for _, s := range []string{host + "/team/app:1", host + "/team/app@" + digest.String()} {
		ref, err := ParseReference(s)
		must.NoError(t, err)
		got, err := c.Resolve(t.Context(), ref, me, false)
		must.NoError(t, err)
		requireSame(t, image, got)
	}

	ref, err := ParseReference(host + "/team/app:2")
	must.NoError(t, err)
	_, err = c.Resolve(t.Context(), ref, me, false)
	requireFailure(t, err, false, "404")
	ref.Tag = "1"
	_, err = c.Resolve(t.Context(), ref, nil, false)
	requireFailure(t, err, false, "401: set auth { }")
	for _, soft := range []bool{false, true} {
		_, err = c.Resolve(t.Context(), ref, &Auth{"me", "wrong"}, soft)
		requireFailure(t, err, false, "401: set auth { }")
	}
	_, err = Client{}.Resolve(t.Context(), ref, me, false)
	requireFailure(t, err, false, "certificate signed by unknown authority")
	c.PlainHTTP = []string{host}
	_, err = c.Resolve(t.Context(), ref, me, false)
	requireFailure(t, err, false, "Client sent an HTTP request to an HTTPS server")
}

func pushToRegistry(t *testing.T, ref, ca string, index v1.ImageIndex) {
	t.Helper()
	tag, err := name.ParseReference(ref)
	must.NoError(t, err)
	pem, err := os.ReadFile(ca)
	must.NoError(t, err)
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM(pem))
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(base.CloseIdleConnections)
	must.NoError(t, remote.WriteIndex(tag, index, remote.WithTransport(base),
		remote.WithAuth(&authn.Basic{Username: "me", Password: "hunter2"})))
}

// startRegistry runs docker-registry with TLS and htpasswd until the end of the test. It
// returns the registry's host:port and the file with its certificate.
func startRegistry(t *testing.T, user, password string) (host, ca string) {
	t.Helper()
	program := hosttest.Program(t, "docker-registry", "docker-registry")
	dir := t.TempDir()
	ca = writeCertificate(t, dir)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "htpasswd"), fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600))
	config := filepath.Join(dir, "config.yml")
	must.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
version: 0.1
storage: {filesystem: {rootdirectory: %[1]s/data}}
http: {addr: "127.0.0.1:0", secret: s, tls: {certificate: %[1]s/cert.pem, key: %[1]s/key.pem}}
auth: {htpasswd: {realm: test, path: %[1]s/htpasswd}}
`, dir), 0o600))

	cmd := exec.Command(program, "serve", config)
	runtime.LockOSThread() // Pdeathsig refers to this thread
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := cmd.StderrPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	logged := make(chan struct{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-logged
		_ = cmd.Wait()
	})
	address := make(chan string, 1)
	go func() {
		defer close(logged)
		defer close(address)
		readAddress(log, address)
	}()
	host, ok := <-address
	must.True(t, ok, must.Sprint("docker-registry ended"))
	return host, ca
}

var listening = regexp.MustCompile(`listening on ([0-9.:]+)`)

// readAddress sends the address on which the registry reports to listen, and reads on.
func readAddress(log io.Reader, address chan<- string) {
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			address <- m[1]
			break
		}
	}
	_, _ = io.Copy(io.Discard, log)
}

// writeCertificate writes key.pem and cert.pem for 127.0.0.1. The certificate is its own
// CA.
func writeCertificate(t *testing.T, dir string) (path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must.NoError(t, err)
	path = filepath.Join(dir, "cert.pem")
	must.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return path
}
