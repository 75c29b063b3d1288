# Handlers of subscribed records: what they get, what becomes of what they do
# and say, and that each has its effects exactly once.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Handlers;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Handlers->new($node, $kafka);
my ($correlation, $reply_to) = qw(kafka_correlationId reply_to_message_id);

subtest 'what a handler gets' => sub {
	my $topic = $test->new_topic('record', 2);
	my $binary = "\xff\xfe\x80";
	my @ids = map { $test->id($_) } 1 .. 2;
	my $big = 'x' x 900_000;

	$test->query('CREATE TABLE got AS SELECT NULL::outbox.record AS r LIMIT 0');
	$kafka->produce($topic,
		{ partition => 1, key => 'k', value => 'text', headers => [ [ id => $ids[0] ] ] },
		{ partition => 0, key => 'k', value => '{"a": 1}', headers => [ [ a => 'b' ] ] },
		{ partition => 0, key => "\xe9", value => $binary, headers => [ [ h => $binary ], [ "\xff" => 'v' ] ] },
		{ partition => 0, key => 'tombstone', value => undef },
		{ partition => 0, key => undef, value => '' },
		{ partition => 0, key => '', value => "nul\0byte" },
		{ partition => 0, value => 'h', headers => [ [ b => '1' ], [ a => undef ], [ b => undef ], [ b => '' ] ] },
		{ partition => 0, value => 'garbage', headers => [ [ id => 'garbage' ] ] },
		{ partition => 0, value => 'second', headers => [ [ id => undef ], [ id => uc $ids[1] ] ] },
		{ partition => 0, key => 'big', value => $big });
	$test->subscribe($topic, 'INSERT INTO got VALUES (r)');
	$test->counts_are($topic, { handled => 10 }, 'all are handled');

	is( $test->query(
			q{SELECT (r).partition, (r)."offset", (r).key, (r).payload, (r).payload_bytes,
				(r).headers, (r).message_id FROM got WHERE (r).key IS DISTINCT FROM 'big'
			  ORDER BY (r).partition DESC, (r)."offset"}), <<"EOS" =~ s/\n\z//r, 'as these');
1|0|k|text|\\x74657874|{"id": "$ids[0]"}|$ids[0]
0|0|k|{"a": 1}|\\x7b2261223a20317d|{"a": "b"}|
0|1|\\xe9||\\xfffe80|{"h": "\\\\xfffe80", "\\\\xff": "v"}|
0|2|tombstone||||
0|3|||\\x||
0|4|||\\x6e756c0062797465||
0|5||h|\\x68|{"a": null, "b": ["1", null, ""]}|
0|6||garbage|\\x67617262616765|{"id": "garbage"}|
0|7||second|\\x7365636f6e64|{"id": [null, "\U$ids[1]\E"]}|$ids[1]
EOS
	is( $test->query(
			q{SELECT string_agg(format('%s %s %s', (r)."offset", (r).key IS NULL, (r).payload IS NULL), ', '
				ORDER BY (r)."offset") FROM got WHERE (r).partition = 0 AND (r)."offset" BETWEEN 2 AND 4}),
		'2 f t, 3 t f, 4 f t', 'no key is not an empty one, nor is a tombstone empty');
	is( $test->query(
			"SELECT count(*) FROM got WHERE (r).topic = '$topic'
			 AND now() - (r).\"timestamp\" BETWEEN '-1 minute' AND '10 minutes'"),
		10, 'with the topic and the time');
	is( $test->query(
			q{SELECT length((r).payload), octet_length((r).payload_bytes) FROM got WHERE (r).key = 'big'}),
		'900000|900000', 'and all of a large one');
};

subtest 'replies' => sub {
	my $replies = $test->new_topic('replies');
	my $n = 100;
	my $text = q(CASE r.key WHEN 'null' THEN NULL WHEN 'empty' THEN ''
		WHEN 'special' THEN E'"\\\\\\n\\u0001\\u00e9\\U0001F600' ELSE 'text' END);
	my %bodies = (
		void => 'PERFORM 1',
		text => "RETURN $text",
		jsonb => q(RETURN CASE r.key WHEN 'json null' THEN 'null' WHEN 'null' THEN NULL
			ELSE '{"b": [1, "2"], "a": null}' END),
		json => q(RETURN '{"b":1,  "b":2}'),
		raise => q(RAISE 'no "stock" %', E'\\u00e9' USING ERRCODE = 'XX123'));
	my @expected;
	my %at;

	# key of the record, and value of the reply
	my %cases = (
		void => [ [ 'k' => 'SUCCESS' ] ],
		text => [
			[ k => '{"status": "SUCCESS", "result": "text"}' ],
			[ null => 'SUCCESS' ],
			[ empty => '{"status": "SUCCESS", "result": ""}' ],
			[ special => qq({"status": "SUCCESS", "result": "\\"\\\\\\n\\u0001\xc3\xa9\xf0\x9f\x98\x80"}) ] ],
		jsonb => [
			[ k => '{"status": "SUCCESS", "result": {"a": null, "b": [1, "2"]}}' ],
			[ 'json null' => '{"status": "SUCCESS", "result": null}' ],
			[ null => 'SUCCESS' ] ],
		json => [ [ k => '{"status": "SUCCESS", "result": {"b":1,  "b":2}}' ] ],
		raise => [ [ k => qq({"status": "FAILED", "error": "no \\"stock\\" \xc3\xa9", "sqlstate": "XX123"}) ] ]);

	foreach my $case (sort keys %cases)
	{
		my $topic = $test->new_topic($case);

		foreach my $one (@{ $cases{$case} })
		{
			my $id = $test->id($n++);

			$kafka->produce($topic, { key => $one->[0], value => 'v', headers => [ [ id => $id ] ] });
			push @expected, "$id $one->[1]";
		}
		$test->subscribe($topic, $bodies{$case}, reply => $replies,
			returns => $case eq 'raise' ? 'void' : $case);
	}
	my @replies = $test->records($replies, scalar @expected);
	is_deeply([ sort map { "$_->{key} $_->{value}" } @replies ], [ sort @expected ],
		'void, NULL, text, jsonb, json and an exception');
	is(scalar(grep { $_->{header}{$reply_to} eq $_->{key} && $_->{header}{id} ne $_->{key} } @replies),
		scalar(@replies), 'each says in a header which message it is about, and has an id of its own');

	# what goes with it
	my $topic = $test->new_topic('correlated');
	my $to = $test->new_topic('correlations');
	my $bytes = "\x00\xff\x80correlation\n";
	my $id = $test->id($n++);

	$kafka->produce($topic,
		{ key => 'a', value => 'v', headers => [ [ id => $id ], [ $correlation, $bytes ] ] },
		{ key => 'b', value => 'v', headers => [ [ $correlation, undef ], [ $correlation, 'text' ], [ x => 'y' ] ] },
		{ key => "\xff", value => 'v' },
		{ key => undef, value => 'v' });
	$test->subscribe($topic, 'PERFORM 1', reply => $to);
	@replies = $test->records($to, 4);
	my @reply_ids = map { delete $_->{header}{id} } @replies;
	is_deeply($replies[0]{header}, { $reply_to => $id, $correlation => $bytes },
		'the correlation id is repeated as it is');
	is_deeply($replies[1]{header}, { $correlation => 'text' }, 'if there is one');
	is_deeply([ map { $_->{key} } @replies ], [ $id, 'b', '\xff', $reply_ids[3] ],
		'without a message id, the reply has the key of the record, or none');
	is($test->query("SELECT count(*) FROM outbox.dead_record WHERE topic LIKE '%correl%'"), 0,
		'and none is dead');
};

subtest 'a reply that can not be sent' => sub {
	my $topic = $test->new_topic('big-correlation');
	my $to = $test->new_topic('big-replies');
	my @ids = map { $test->id($_) } 200 .. 202;
	my $bytes = 'b' x 980_000;
	my @header = ([ $correlation, $bytes ]);

	$kafka->produce($topic,
		{ key => 'ok', value => 'v', headers => [ [ id => $ids[0] ], @header ] },
		{ key => 'raise', value => 'v', headers => [ [ id => $ids[1] ], @header ] },
		{ key => 'ok', value => 'v', headers => [ [ id => $ids[2] ] ] },
		{ key => 'ok', value => 'v', headers => [ [ id => $ids[2] ], @header ] },
		{ key => 'return', value => 'v' },
		{ key => 'ok', value => 'v' });
	$test->subscribe($topic, <<'EOS', reply => $to, returns => 'text');
BEGIN
	PERFORM note(r, r.key);
	IF r.key = 'raise' THEN RAISE 'no'; END IF;
	RETURN CASE r.key WHEN 'return' THEN repeat('x', 100000000) END;
END
EOS
	$test->counts_are($topic, { handled => 2, failed => 1, dead => 3 }, 'makes a record dead');
	is($test->notes($topic), '0:2 ok, 0:5 ok', 'and undoes what the handler did');
	is( $test->query(
			"SELECT string_agg(format('%s %s', \"offset\", sqlstate), ', ' ORDER BY 1) FROM outbox.dead_record
			 WHERE topic = '$topic'"),
		'0 54000, 1 54000, 3 54000', 'with the reason');
	like(($test->records($to, 3))[1]{value},
		qr/^{"status": "FAILED", "error": "message for topic \\"$to\\" is too large", "sqlstate": "54000"}$/,
		'a value of 100 MB is an error of the handler');
};

subtest 'the inbox' => sub {
	my $topic = $test->new_topic('inbox', 2);
	my $to = $test->new_topic('inbox-replies');
	my @ids = map { $test->id($_) } 300 .. 304;
	my $record = sub {
		my ($partition, $key, $id) = @_;
		return { partition => $partition, key => $key, value => 'v', headers => [ $id ? [ id => $id ] : () ] };
	};

	$kafka->produce($topic, map { $record->(0, @$_) }
		[ ok => $ids[0] ], [ ok => uc $ids[0] ], [ fail => $ids[1] ], [ fail => $ids[1] ],
		[ dies => $ids[2] ], [ dies => $ids[2] ], ['none'], ['none']);
	$test->subscribe($topic, <<'EOS', reply => $to, returns => 'text', rest => ', max_attempts => 1');
BEGIN
	IF r.key = 'fail' THEN RAISE 'attempt at %', r."offset"; END IF;
	IF r.key = 'dies' AND r."offset" < 6 THEN RAISE lock_not_available; END IF;
	PERFORM note(r, r.key);
	RETURN 'at ' || r."offset";
END
EOS
	$test->counts_are($topic, { handled => 3, failed => 1, repeated => 2, dead => 2 },
		'copies in one batch');
	is($test->notes($topic), '0:0 ok, 0:6 none, 0:7 none',
		'each message once, and what has no id each time');
	is($test->batches($topic), 1, 'it was one batch');

	$kafka->produce($topic, $record->(1, 'fail', $ids[1]), $record->(1, 'ok', $ids[0]),
		$record->(0, 'fail', $ids[3]));
	$test->counts_are($topic, { handled => 3, failed => 2, repeated => 4, dead => 2 },
		'copies in another, or in another partition');
	$node->restart;
	$kafka->produce($topic, $record->(1, 'ok', $ids[0]), $record->(1, 'fail', $ids[3]),
		$record->(0, 'dies', $ids[2]));
	$test->counts_are($topic, { handled => 4, failed => 2, repeated => 6, dead => 2 },
		'copies after a restart, and one of a dead record');
	is($test->notes($topic), '0:0 ok, 0:6 none, 0:7 none, 0:9 dies', 'the latter is handled');

	my %replies;
	push @{ $replies{ $_->{key} // '' } }, $_->{value} foreach ($test->records($to, 12));
	my $success = sub { qq({"status": "SUCCESS", "result": "at $_[0]"}) };
	my $failed = sub { qq({"status": "FAILED", "error": "attempt at $_[0]", "sqlstate": "P0001"}) };
	is_deeply(\%replies, {
			$ids[0] => [ ($success->(0)) x 4 ],
			$ids[1] => [ ($failed->(2)) x 3 ],
			$ids[2] => [ $success->(9) ],
			$ids[3] => [ ($failed->(8)) x 2 ],
			none => [ $success->(6), $success->(7) ] },
		'a repeated message has its reply repeated');
};

subtest 'errors that pass' => sub {
	my @states = qw(40001 40P01 55P03 53100 53200 53300 57014 57P01 58030 08006);
	my $topic = $test->new_topic('transient', scalar @states);
	my $to = $test->new_topic('transient-replies');

	# An attempt leaves nothing in the database, but a sequence isn't undone.
	$test->query('CREATE SEQUENCE tries MINVALUE 0 START 0');
	$kafka->produce($topic, map {
			({ partition => $_, key => $states[$_], value => 'v' },
			 { partition => $_, key => 'after', value => 'v' })
		} 0 .. $#states);
	$test->subscribe($topic, <<"EOS", reply => $to);
BEGIN
	PERFORM note(r, r.key);
	IF r.key <> 'after' AND nextval('tries') < @{[ scalar @states ]} THEN
		RAISE 'later' USING ERRCODE = r.key;
	END IF;
END
EOS
	$test->counts_are($topic, { handled => 2 * @states }, 'are tried again');
	is( $test->query(
			"SELECT string_agg(n, ' ' ORDER BY partition) FROM (SELECT partition,
				string_agg(note, ' ' ORDER BY number) AS n FROM notes WHERE topic = '$topic' GROUP BY 1) AS p"),
		join(' ', map { "$_ after" } @states), 'in order, and once');

	# one that waits, and what goes on meanwhile
	my $waiting = $test->new_topic('waiting', 2);
	my $dead = $test->new_topic('other');

	$test->query('CREATE TABLE open_gate (gate text)');
	$kafka->produce($waiting,
		{ partition => 0, key => 'a', value => 'v' }, { partition => 0, key => 'gate', value => 'v' },
		{ partition => 0, key => 'b', value => 'v' }, { partition => 1, key => 'c', value => 'v' });
	$test->subscribe($waiting, <<'EOS', rest => ', max_attempts => 1000');
BEGIN
	PERFORM note(r, r.key);
	IF r.key = 'gate' AND NOT EXISTS (SELECT FROM open_gate) THEN
		RAISE 'the gate is closed' USING ERRCODE = 'lock_not_available';
	END IF;
END
EOS
	$test->wait_for(
		"SELECT state, reason, partitions_retrying, records_handled FROM outbox.subscription WHERE topic = '$waiting'",
		qr/^retrying\|partition 0, offset 1, attempt \d+: the gate is closed\|1\|2$/);
	$kafka->produce($waiting, { partition => 1, key => 'd', value => 'v' });
	$kafka->produce($dead, { key => 'x', value => 'v' });
	$test->subscribe($dead, q(PERFORM note(r, 'x')));
	$test->counts_are($dead, { handled => 1 }, 'other subscriptions go on');
	$test->counts_are($waiting, { handled => 3 }, 'and so does another partition');

	my $attempts = "SELECT retry_attempts FROM outbox.consumer_offset
		WHERE topic = '$waiting' AND partition = 0";
	$test->wait_for("SELECT ($attempts) >= 3", 't');
	$node->restart;
	cmp_ok($test->query($attempts), '>=', 3, 'the attempts are kept over a restart');
	my ($before) = $test->query($attempts);
	$test->wait_for("SELECT ($attempts) > $before", 't');
	$test->query("INSERT INTO open_gate VALUES ('it')");
	$test->counts_are($waiting, { handled => 5 }, 'until it succeeds');
	is( $test->query(
			"SELECT string_agg(note, ' ' ORDER BY number) FROM notes WHERE topic = '$waiting' AND partition = 0"),
		'a gate b', 'and the later ones after it');
	is($test->query("SELECT state, reason FROM outbox.subscription WHERE topic = '$waiting'"),
		'running|', 'it is running again');
};

subtest 'dead records' => sub {
	my $topic = $test->new_topic('dead');
	my $to = $test->new_topic('dead-replies');
	my $lone = $test->new_topic('dead-lone');
	my ($id, $other) = map { $test->id($_) } 400, 401;

	$test->query('CREATE TABLE mended (number int)');
	my $body = <<'EOS';
BEGIN
	PERFORM note(r, r.key);
	IF r.key = 'dies' AND NOT EXISTS (SELECT FROM mended) THEN RAISE disk_full; END IF;
	IF r.key = 'raises' AND NOT EXISTS (SELECT FROM mended) THEN RAISE 'never' USING ERRCODE = 'AB123'; END IF;
	RETURN 'handled ' || r.payload;
END
EOS
	$kafka->produce($topic,
		{ key => 'dies', value => 'v', headers => [ [ id => $id ], [ a => "\xff" ], [ $correlation, "\x00c" ] ] },
		{ key => 'after', value => 'w', headers => [ [ id => $other ] ] });
	$kafka->produce($lone, { key => 'raises', value => "\xff" }, { key => 'after', value => 'w' });
	$test->subscribe($topic, $body, reply => $to, returns => 'text', rest => ', max_attempts => 2');
	$test->subscribe($lone, $body, returns => 'text');
	$test->counts_are($topic, { handled => 1, dead => 1 }, 'after the last attempt');
	$test->counts_are($lone, { handled => 1, dead => 1 },
		'without a reply topic, after an exception');
	is( $test->query(
			"SELECT partition, \"offset\", key, payload, payload_bytes, headers, message_id, attempts,
				sqlstate, error, dead_at <= now(), replay_at FROM outbox.dead_record
			 WHERE topic IN ('$topic', '$lone') ORDER BY topic = '$lone'"), <<"EOS" =~ s/\n\z//r,
0|0|dies|v|\\x76|{"a": "\\\\xff", "id": "$id", "kafka_correlationId": "\\\\x0063"}|$id|2|53100|disk_full|t|
0|0|raises||\\xff|||1|AB123|never|t|
EOS
		'they keep everything');
	is(scalar(@{ [ $test->records($to, 1) ] }), 1, 'and send no reply');
	is($test->notes($topic) . '; ' . $test->notes($lone), '0:1 after; 0:1 after', 'nor leave anything');

	my $number = "(SELECT number FROM outbox.dead_record WHERE topic = '$lone')";
	$test->query("SELECT outbox.replay($number)");
	$test->wait_for("SELECT attempts, replay_at FROM outbox.dead_record WHERE topic = '$lone'", '2|');
	is($test->query("SELECT outbox.replay('$topic')"), '1', 'replay by topic says how many');
	$test->wait_for(
		"SELECT attempts, replay_at FROM outbox.dead_record WHERE topic = '$topic'", '4|');
	pass('dead again, the attempts are counted on');

	# the subscription is gone: it waits
	$test->query("SELECT outbox.unsubscribe('$lone'); SELECT outbox.replay($number)");
	$test->wait_for(
		"SELECT attempts, error, replay_at > now() FROM outbox.dead_record WHERE topic = '$lone'",
		'2|the topic is not subscribed to|t');
	$test->query('INSERT INTO mended VALUES (1)');
	$test->subscribe($lone, $body, returns => 'text', rest => q(, start => 'latest'));
	$test->query("SELECT outbox.replay(number) FROM outbox.dead_record WHERE topic IN ('$topic', '$lone')");
	$test->wait_for(
		"SELECT count(*) FROM outbox.dead_record WHERE topic IN ('$topic', '$lone')", '0');
	is($test->notes($topic) . '; ' . $test->notes($lone), '0:1 after, 0:0 dies; 0:1 after, 0:0 raises',
		'handled, they are gone');
	my $reply = ($test->records($to, 2))[1];
	is("$reply->{key} $reply->{value}", qq($id {"status": "SUCCESS", "result": "handled v"}),
		'the reply is sent');
	is($reply->{header}{$correlation}, "\x00c", 'with its correlation');
};

subtest 'dead letters' => sub {
	my $topic = $test->new_topic('letters', 2);
	my $id = $test->id(500);

	$kafka->create_topic("$topic-dlt", 1);
	$kafka->produce($topic,
		{ partition => 0, key => 'first', value => 'v' },
		{ partition => 1, key => 'k', value => "\xff\x00", headers =>
			  [ [ a => '1' ], [ b => "\xfe" ], [ a => undef ], [ id => $id ] ] },
		{ partition => 1, key => 'tombstone', value => undef },
		{ partition => 1, key => 'big', value => 'v', headers => [ [ big => 'b' x 999_800 ] ] });
	$test->subscribe($topic, q(IF r.partition = 1 THEN RAISE 'not this' USING ERRCODE = '22012'; END IF),
		rest => ', dead_letter => true');
	$test->counts_are($topic, { handled => 1, dead => 3 }, 'of dead records');
	my ($letter, $tombstone) = $test->records("$topic-dlt", 2);
	is_deeply([ @$letter{qw(key value)} ], [ 'k', "\xff\x00" ], 'have their key and value');
	is_deeply([ @$tombstone{qw(key value)} ], [ 'tombstone', undef ], 'also none');
	my %headers = %{ $letter->{header} };
	isnt(delete $headers{id}, $id, 'an id of their own');
	my $time = unpack('q>', delete $headers{'kafka_dlt-original-timestamp'});
	cmp_ok(abs($time / 1000 - time()), '<', 600, 'the time of the record');
	is_deeply(\%headers, {
			a => undef,
			b => "\xfe",
			original_id => $id,
			'kafka_dlt-original-topic' => $topic,
			'kafka_dlt-original-partition' => "\0\0\0\x01",
			'kafka_dlt-original-offset' => "\0" x 8,
			'kafka_dlt-original-timestamp-type' => 'CreateTime',
			'kafka_dlt-original-consumer-group' => 'outbox',
			'kafka_dlt-exception-fqcn' => 'sqlstate.22012',
			'kafka_dlt-exception-message' => 'not this' },
		'and the headers of the record and of Spring');
	is_deeply([ map { $_->[1] } grep { $_->[0] eq 'a' } @{ $letter->{headers} } ], [ '1', undef ],
		'each as often as it came');
	is($test->query("SELECT count(*) FROM outbox.dead_record WHERE topic = '$topic'"), 3,
		'one that is too large is kept in the database only');
	like(slurp_file($node->logfile), qr/could not send a dead record to topic "$topic-dlt"/,
		'and the log says so');
};

subtest 'isolation' => sub {
	my $topic = $test->new_topic('isolation', 2);
	my $to = $test->new_topic('isolation-replies');

	$test->query(<<'EOS');
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (1);
CREATE TABLE child (id int, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE watched (key text);
CREATE TABLE consequence (key text, role name DEFAULT current_user);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.key = 'trigger raises' THEN RAISE 'the trigger raises'; END IF;
	INSERT INTO consequence VALUES (NEW.key);
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER watch AFTER INSERT ON watched DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION watch();
EOS
	my $body = <<'EOS';
BEGIN
	PERFORM note(r, r.key);
	INSERT INTO child VALUES (r."offset", CASE r.key WHEN 'no parent' THEN 2 ELSE 1 END);
	INSERT INTO watched VALUES (r.key);
	IF r.key = 'raises' THEN RAISE 'raised'; END IF;
END
EOS
	$kafka->produce($topic, map { { partition => 0, key => $_, value => 'v' } }
		(map { "before $_" } 1 .. 20), 'raises', map { "after $_" } 1 .. 9);
	$test->subscribe($topic, $body, reply => $to);
	$test->counts_are($topic, { handled => 29, failed => 1 }, 'one that raises in a batch');
	is($test->batches($topic), 1, 'which is not done again');
	is( $test->query('SELECT count(*), count(DISTINCT key), min(role) FROM consequence'),
		'29|29|postgres', 'deferred triggers work');

	# what fails at the end
	my $deferred = $test->new_topic('deferred', 2);
	$test->query('TRUNCATE consequence');
	$kafka->produce($deferred, map { { partition => 0, key => $_, value => 'v' } }
		'a', 'no parent', 'b', 'trigger raises', 'c');
	$test->subscribe($deferred, $body, reply => $to);
	$test->counts_are($deferred, { handled => 3, failed => 2 }, 'those that break a deferred constraint');
	is($test->notes($deferred), '0:0 a, 0:2 b, 0:4 c', 'take no other with them');
	is($test->query(q(SELECT string_agg(key, ' ' ORDER BY key) FROM consequence)), 'a b c',
		'and their triggers are fired once');
	is_deeply([ map { $_->{value} =~ /"sqlstate": "(\w+)"/ ? $1 : () } $test->records($to, 35) ],
		[ 'P0001', '23503', 'P0001' ], 'the replies have the reason');
	like(slurp_file($node->logfile), qr/a batch of 5 records is handled again, each alone/,
		'the log says what it costs');

	# the one waits, and the other breaks the batch
	my $both = $test->new_topic('both');
	$test->query('CREATE SEQUENCE tried; CREATE TABLE gate (open boolean)');
	$kafka->produce($both, map { { key => $_, value => 'v' } } 'no parent', 'waits', 'last');
	$test->subscribe($both, <<'EOS', reply => $to);
BEGIN
	PERFORM note(r, r.key);
	INSERT INTO child VALUES (r."offset", CASE r.key WHEN 'no parent' THEN 2 ELSE 1 END);
	IF r.key = 'waits' AND nextval('tried') <= 1 THEN RAISE lock_not_available; END IF;
END
EOS
	$test->counts_are($both, { handled => 2, failed => 1 }, 'also together with one that waits');
	is($test->notes($both), '0:1 waits, 0:2 last', 'each once, and none is lost');

	# SET CONSTRAINTS counts until the transaction ends
	my $set = $test->new_topic('set-constraints');
	$kafka->produce($set, map { { key => $_, value => 'v' } } 'a' .. 'c');
	$test->subscribe($set, <<'EOS', reply => $to);
BEGIN
	INSERT INTO child VALUES (r."offset", 100 + r."offset");
	INSERT INTO parent VALUES (100 + r."offset");
	SET CONSTRAINTS ALL IMMEDIATE;
	PERFORM note(r, r.key);
END
EOS
	$test->counts_are($set, { handled => 3 }, 'of each transaction of its own');
	is($test->notes($set), '0:0 a, 0:1 b, 0:2 c', 'and each is handled once');
	is( $test->query(
			"SELECT count(*) FROM notes n JOIN notes m USING (topic, partition, \"offset\") WHERE n.number < m.number"),
		0, 'nothing was handled twice in this test');
};

$node->stop;
$kafka->stop;
done_testing();
