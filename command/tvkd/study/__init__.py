"""`tvkd study`: which objective helps this student, against DPO and against controls that know nothing of content."""
