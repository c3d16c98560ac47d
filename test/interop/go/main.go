// An unmodified go-dqlite client and driver against a cluster of three: what an application in Go does, checked step by
// step. Knows only addresses and process ids; the nodes may be anybody's. One line per check on standard output, status
// 1 at the first that fails.
//
//	main --addr A,B,C --pids PID,PID,PID [--parameters N]
//
// The first address is the node that bootstrapped; the others are added here. The leader is killed at the end. N is how
// many parameters the driver can send: 255 before 1.20 (schema 0 alone), more since (schema 1). The import paths below
// are those of 1.x; a build against a later major version changes them and nothing else.
package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/canonical/go-dqlite/client"
	"github.com/canonical/go-dqlite/driver"
)

var (
	addresses []string
	pids      []int
	ctx       context.Context
	db        *sql.DB

	parametersMax int
)

func check(title string, step func() error) {
	start := time.Now()
	if err := step(); err != nil {
		fmt.Printf("not ok %s: %v\n", title, err)
		os.Exit(1)
	}
	fmt.Printf("ok %s (%d ms)\n", title, time.Since(start).Milliseconds())
}

func store() client.NodeStore {
	s := client.NewInmemNodeStore()
	infos := []client.NodeInfo{}
	for i, a := range addresses {
		infos = append(infos, client.NodeInfo{ID: uint64(i + 1), Address: a, Role: client.Voter})
	}
	if err := s.Set(context.Background(), infos); err != nil {
		panic(err)
	}
	return s
}

func leader() (*client.Client, *client.NodeInfo, error) {
	c, err := client.FindLeader(ctx, store())
	if err != nil {
		return nil, nil, err
	}
	info, err := c.Leader(ctx)
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	if info == nil || info.Address == "" {
		c.Close()
		return nil, nil, errors.New("the leader does not know itself")
	}
	return c, info, nil
}

// What an application does about BUSY: C nodes refuse a second writer at once.
func exec(query string, args ...interface{}) (sql.Result, error) {
	for i := 0; ; i++ {
		r, err := db.ExecContext(ctx, query, args...)
		var e driver.Error
		if err != nil && errors.As(err, &e) && e.Code&0xff == driver.ErrBusy && i < 1000 {
			time.Sleep(time.Duration(i%10+1) * time.Millisecond)
			continue
		}
		return r, err
	}
}

func run(query string, args ...interface{}) error {
	_, err := exec(query, args...)
	return err
}

func number(query string, args ...interface{}) (int64, error) {
	var n int64
	err := db.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

func expect(query string, want int64, args ...interface{}) error {
	got, err := number(query, args...)
	if err == nil && got != want {
		err = fmt.Errorf("%s gives %d, expected %d", query, got, want)
	}
	return err
}

func all(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func join() error {
	c, info, err := leader()
	if err != nil {
		return err
	}
	defer c.Close()
	if info.Address != addresses[0] {
		return fmt.Errorf("%s leads, expected %s", info.Address, addresses[0])
	}
	for i := 1; i < len(addresses); i++ {
		if err := c.Add(ctx, client.NodeInfo{ID: uint64(i + 1), Address: addresses[i], Role: client.Voter}); err != nil {
			return err
		}
	}
	members, err := c.Cluster(ctx)
	if err != nil {
		return err
	}
	if len(members) != len(addresses) {
		return fmt.Errorf("%d members", len(members))
	}
	for i, m := range members {
		if m.ID != uint64(i+1) || m.Address != addresses[i] || m.Role != client.Voter {
			return fmt.Errorf("member %+v", m)
		}
	}
	return nil
}

func ddlAndDml() error {
	if err := run("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT UNIQUE, age INTEGER)"); err != nil {
		return err
	}
	if err := run("CREATE INDEX person_age ON person (age)"); err != nil {
		return err
	}
	r, err := exec("INSERT INTO person (name, age) VALUES (?, ?), (?, ?)", "Ada", 36, "Grace", 85)
	if err != nil {
		return err
	}
	if id, _ := r.LastInsertId(); id != 2 {
		return fmt.Errorf("last insert id %d", id)
	}
	if n, _ := r.RowsAffected(); n != 2 {
		return fmt.Errorf("%d rows affected", n)
	}
	r, err = exec("UPDATE person SET age = age + 1 WHERE name = ?", "Ada")
	if err != nil {
		return err
	}
	if n, _ := r.RowsAffected(); n != 1 {
		return fmt.Errorf("update affected %d rows", n)
	}
	if err := run("DELETE FROM person WHERE name = ?", "Grace"); err != nil {
		return err
	}
	if err := run("ALTER TABLE person ADD COLUMN city TEXT DEFAULT 'London'"); err != nil {
		return err
	}
	var name, city string
	var age int
	if err := db.QueryRowContext(ctx, "SELECT name, age, city FROM person").Scan(&name, &age, &city); err != nil {
		return err
	}
	if name != "Ada" || age != 37 || city != "London" {
		return fmt.Errorf("row %s %d %s", name, age, city)
	}
	return run("DROP INDEX person_age")
}

func sqlErrors() error {
	err := run("INSERT INTO person (name) VALUES ('Ada')")
	var e driver.Error
	if !errors.As(err, &e) || e.Code != 2067 || !strings.Contains(e.Message, "UNIQUE constraint failed: person.name") {
		return fmt.Errorf("unique: %v", err)
	}
	err = run("SELEKT 1")
	if !errors.As(err, &e) || e.Code != 1 || !strings.Contains(e.Message, "syntax error") {
		return fmt.Errorf("syntax: %v", err)
	}
	err = run("INSERT INTO nowhere VALUES (1)")
	if !errors.As(err, &e) || e.Code != 1 || e.Message != "no such table: nowhere" {
		return fmt.Errorf("no table: %v", err)
	}
	return expect("SELECT count(*) FROM person", 1)
}

func transactions() error {
	if err := run("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER CHECK (balance >= 0))"); err != nil {
		return err
	}
	if err := run("INSERT INTO account VALUES (1, 100), (2, 0)"); err != nil {
		return err
	}
	transfer := func(amount int, commit bool) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for _, q := range []string{"UPDATE account SET balance = balance - ? WHERE id = 1", "UPDATE account SET balance = balance + ? WHERE id = 2"} {
			if _, err := tx.ExecContext(ctx, q, amount); err != nil {
				if rollback := tx.Rollback(); rollback != nil {
					return rollback
				}
				return err
			}
		}
		var inside int
		if err := tx.QueryRowContext(ctx, "SELECT sum(balance) FROM account").Scan(&inside); err != nil {
			return err
		}
		if inside != 100 {
			return fmt.Errorf("inside the transaction the sum is %d", inside)
		}
		if commit {
			return tx.Commit()
		}
		return tx.Rollback()
	}
	if err := transfer(30, true); err != nil {
		return err
	}
	if err := transfer(50, false); err != nil {
		return err
	}
	if err := transfer(500, true); err == nil || !strings.Contains(err.Error(), "CHECK constraint failed") {
		return fmt.Errorf("overdrawn: %v", err)
	}
	return all(
		func() error { return expect("SELECT balance FROM account WHERE id = 1", 70) },
		func() error { return expect("SELECT balance FROM account WHERE id = 2", 30) })
}

func preparedStatements() error {
	if err := run("CREATE TABLE point (x INTEGER, y REAL)"); err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	insert, err := conn.PrepareContext(ctx, "INSERT INTO point VALUES (?, ?)")
	if err != nil {
		return err
	}
	for i := 0; i < 50; i++ {
		if _, err := insert.ExecContext(ctx, i, float64(i)/4); err != nil {
			return err
		}
	}
	if _, err := insert.ExecContext(ctx, 1); err == nil {
		return errors.New("a statement with two parameters took one")
	}
	if err := insert.Close(); err != nil {
		return err
	}
	query, err := conn.PrepareContext(ctx, "SELECT y FROM point WHERE x = ?")
	if err != nil {
		return err
	}
	defer query.Close()
	for i := 0; i < 50; i++ {
		var y float64
		if err := query.QueryRowContext(ctx, i).Scan(&y); err != nil {
			return err
		}
		if y != float64(i)/4 {
			return fmt.Errorf("point %d is %f", i, y)
		}
	}
	var y float64
	if err := query.QueryRowContext(ctx, 1000).Scan(&y); err != sql.ErrNoRows {
		return fmt.Errorf("no row: %v", err)
	}
	return nil
}

func values() error {
	if err := run("CREATE TABLE v (id INTEGER PRIMARY KEY, i INTEGER, f FLOAT, t TEXT, b BLOB, flag BOOLEAN, at DATETIME)"); err != nil {
		return err
	}
	zone := time.FixedZone("", 3600)
	at := time.Date(2024, 2, 29, 23, 59, 58, 123456000, zone)
	type row struct {
		i    int64
		f    float64
		t    string
		b    []byte
		flag bool
		at   time.Time
	}
	big := bytes.Repeat([]byte{0, 1, 254, 255}, 25000)
	rows := []row{
		{0, 0, "", []byte{}, false, time.Unix(0, 0).UTC()},
		{math.MaxInt64, math.MaxFloat64, "naïve 日本語 🙂", []byte{0, 255, 0}, true, at},
		{math.MinInt64, -math.SmallestNonzeroFloat64, strings.Repeat("x", 10000), big, true, at.UTC()},
	}
	for n, r := range rows {
		if err := run("INSERT INTO v VALUES (?, ?, ?, ?, ?, ?, ?)", n, r.i, r.f, r.t, r.b, r.flag, r.at); err != nil {
			return err
		}
		var g row
		if err := db.QueryRowContext(ctx, "SELECT i, f, t, b, flag, at FROM v WHERE id = ?", n).Scan(&g.i, &g.f, &g.t, &g.b, &g.flag, &g.at); err != nil {
			return fmt.Errorf("row %d: %w", n, err)
		}
		if g.i != r.i || g.f != r.f || g.t != r.t || !bytes.Equal(g.b, r.b) || g.flag != r.flag || !g.at.Equal(r.at) {
			return fmt.Errorf("row %d came back different", n)
		}
	}
	if err := run("INSERT INTO v (id, i, f, t, b) VALUES (9, NULL, ?, ?, ?)", nil, nil, nil); err != nil {
		return err
	}
	var i sql.NullInt64
	var f sql.NullFloat64
	var t sql.NullString
	var b []byte
	if err := db.QueryRowContext(ctx, "SELECT i, f, t, b FROM v WHERE id = 9").Scan(&i, &f, &t, &b); err != nil {
		return err
	}
	if i.Valid || f.Valid || t.Valid || b != nil {
		return errors.New("a NULL is not NULL")
	}
	result, err := db.QueryContext(ctx, "SELECT i, f, t, b, flag, at FROM v WHERE id = 1")
	if err != nil {
		return err
	}
	defer result.Close()
	if !result.Next() {
		return errors.New("no row")
	}
	types, err := result.ColumnTypes()
	if err != nil {
		return err
	}
	names := []string{}
	for _, c := range types {
		names = append(names, c.DatabaseTypeName())
	}
	if want := []string{"INTEGER", "FLOAT", "TEXT", "BLOB", "BOOL", "TIME"}; !reflect.DeepEqual(names, want) {
		return fmt.Errorf("column types %v", names)
	}
	return nil
}

// Above 255 parameters the driver changes to the second layout of tuples (schema 1).
func manyParameters() error {
	if err := run("CREATE TABLE wide (id INTEGER PRIMARY KEY, t TEXT)"); err != nil {
		return err
	}
	counts := []int{1, 7, 8, 254, 255}
	for _, n := range []int{256, 257, 1000, 32766} {
		if n <= parametersMax {
			counts = append(counts, n)
		}
	}
	for _, n := range counts {
		args := make([]interface{}, n)
		for i := range args {
			args[i] = strconv.Itoa(i)
		}
		places := strings.Repeat(", (?)", n)[2:]
		r, err := exec("INSERT INTO wide (t) VALUES "+places, args...)
		if err != nil {
			return fmt.Errorf("%d parameters: %w", n, err)
		}
		if affected, _ := r.RowsAffected(); affected != int64(n) {
			return fmt.Errorf("%d parameters: %d rows affected", n, affected)
		}
		if err := expect("SELECT count(*) FROM wide WHERE t IN ("+strings.Repeat(", ?", n)[2:]+")", int64(n), args...); err != nil {
			return fmt.Errorf("%d parameters: %w", n, err)
		}
		// By id too: EXEC and QUERY have both layouts as well.
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		remove, err := conn.PrepareContext(ctx, "DELETE FROM wide WHERE t IN ("+strings.Repeat(", ?", n)[2:]+")")
		if err == nil {
			if r, err = remove.ExecContext(ctx, args...); err == nil {
				if affected, _ := r.RowsAffected(); affected != int64(n) {
					err = fmt.Errorf("%d rows deleted", affected)
				}
			}
			remove.Close()
		}
		conn.Close()
		if err != nil {
			return fmt.Errorf("%d parameters, prepared: %w", n, err)
		}
	}
	return expect("SELECT count(*) FROM wide", 0)
}

const manyRows = 100000

func largeResult() error {
	if err := run("CREATE TABLE many (id INTEGER PRIMARY KEY, name TEXT, data BLOB)"); err != nil {
		return err
	}
	err := run(fmt.Sprintf("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < %d) INSERT INTO many SELECT i, printf('name-%%d', i), zeroblob(i %% 40) FROM c", manyRows))
	if err != nil {
		return err
	}
	result, err := db.QueryContext(ctx, "SELECT id, name, data FROM many ORDER BY id")
	if err != nil {
		return err
	}
	defer result.Close()
	n := 0
	for result.Next() {
		n++
		var id int
		var name string
		var data []byte
		if err := result.Scan(&id, &name, &data); err != nil {
			return err
		}
		if id != n || name != "name-"+strconv.Itoa(n) || len(data) != n%40 {
			return fmt.Errorf("row %d is %d %s %d", n, id, name, len(data))
		}
	}
	if err := result.Err(); err != nil {
		return err
	}
	if n != manyRows {
		return fmt.Errorf("%d rows", n)
	}
	return nil
}

// Closing a result before its end sends INTERRUPT; the connection must go on.
func abandonedResult() error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for round := 0; round < 5; round++ {
		result, err := conn.QueryContext(ctx, "SELECT id, name, data FROM many")
		if err != nil {
			return err
		}
		for i := 0; i < 3; i++ {
			if !result.Next() {
				return errors.New("no row")
			}
		}
		if err := result.Close(); err != nil {
			return err
		}
		var n int
		if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM many").Scan(&n); err != nil {
			return err
		}
		if n != manyRows {
			return fmt.Errorf("%d rows", n)
		}
	}
	return nil
}

func concurrentWriters() error {
	if err := run("CREATE TABLE writes (writer INTEGER, n INTEGER)"); err != nil {
		return err
	}
	var wg sync.WaitGroup
	failures := make(chan error, 8)
	for w := 0; w < 8; w++ {
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			for n := 0; n < 25; n++ {
				if err := run("INSERT INTO writes VALUES (?, ?)", w, n); err != nil {
					failures <- err
					return
				}
			}
		}(w)
	}
	wg.Wait()
	close(failures)
	if err, failed := <-failures; failed {
		return err
	}
	return expect("SELECT count(*) FROM writes", 200)
}

func awaitWrite(table string) error {
	var err error
	for i := 0; i < 600; i++ {
		if err = run("INSERT INTO " + table + " VALUES (0, -1)"); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func transferLeadership() error {
	c, old, err := leader()
	if err != nil {
		return err
	}
	target := uint64(2)
	if old.ID == target {
		target = 3
	}
	err = c.Transfer(ctx, target)
	c.Close()
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		c, now, err := leader()
		if err == nil {
			c.Close()
			if now.ID == target {
				break
			}
			err = fmt.Errorf("%d leads, expected %d", now.ID, target)
		}
		if i > 200 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := awaitWrite("writes"); err != nil {
		return err
	}
	return expect("SELECT count(*) FROM writes WHERE n >= 0", 200)
}

func dump() error {
	c, _, err := leader()
	if err != nil {
		return err
	}
	defer c.Close()
	files, err := c.Dump(ctx, "interop")
	if err != nil {
		return err
	}
	if len(files) != 2 || files[0].Name != "interop" || files[1].Name != "interop-wal" {
		return fmt.Errorf("%d files", len(files))
	}
	if !bytes.HasPrefix(files[0].Data, []byte("SQLite format 3\x00")) {
		return errors.New("the dump is not a SQLite database")
	}
	return nil
}

func killLeader() error {
	c, info, err := leader()
	if err != nil {
		return err
	}
	c.Close()
	for i, a := range addresses {
		if a == info.Address {
			if err := syscall.Kill(pids[i], syscall.SIGKILL); err != nil {
				return err
			}
		}
	}
	if err := awaitWrite("writes"); err != nil {
		return err
	}
	return all(
		func() error { return expect("SELECT count(*) FROM writes WHERE n >= 0", 200) },
		func() error { return expect("SELECT count(*) FROM many", manyRows) },
		func() error { return expect("SELECT sum(balance) FROM account", 100) })
}

func main() {
	addr := flag.String("addr", "", "addresses of the nodes; the first has bootstrapped")
	pid := flag.String("pids", "", "their process ids, in the same order")
	flag.IntVar(&parametersMax, "parameters", 255, "how many parameters the driver can send")
	flag.Parse()
	addresses = strings.Split(*addr, ",")
	for _, p := range strings.Split(*pid, ",") {
		n, err := strconv.Atoi(p)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		pids = append(pids, n)
	}
	if len(pids) != len(addresses) {
		fmt.Fprintln(os.Stderr, "as many pids as addresses")
		os.Exit(2)
	}
	var cancel context.CancelFunc
	ctx, cancel = context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()

	check("two servers are added and become voters", join)

	d, err := driver.New(store(), driver.WithConnectionBackoffFactor(5*time.Millisecond), driver.WithConnectionBackoffCap(50*time.Millisecond), driver.WithAttemptTimeout(2*time.Second))
	if err != nil {
		panic(err)
	}
	sql.Register("dqlite-interop", d)
	if db, err = sql.Open("dqlite-interop", "interop"); err != nil {
		panic(err)
	}
	defer db.Close()

	check("tables, indexes, inserts, updates and deletes work", ddlAndDml)
	check("SQL errors carry SQLite's codes and texts", sqlErrors)
	check("transactions commit, roll back and keep constraints", transactions)
	check("prepared statements are executed, queried and closed", preparedStatements)
	check("NULL, integers, floats, texts, blobs, booleans and times come back", values)
	check("statements take as many parameters as the driver can send", manyParameters)
	check("a result of 100,000 rows arrives whole", largeResult)
	check("a result closed before its end leaves the connection usable", abandonedResult)
	check("eight writers at once lose nothing", concurrentWriters)
	check("leadership moves where it is sent, and nothing is missing", transferLeadership)
	check("a dump is a SQLite database", dump)
	check("after the leader is killed writing goes on, and nothing is missing", killLeader)
}
